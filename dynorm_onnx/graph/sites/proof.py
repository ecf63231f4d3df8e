"""Proof that a decomposed site is the norm it was read as: its nodes are run against the definition."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator

from dynorm_onnx.graph.norm_site import NearMiss, NormSite
from dynorm_onnx.graph.sites.extract import Extract, extract, tensor_type
from dynorm_onnx.graph.values.index import GraphIndex

logger = logging.getLogger(__name__)

Feeds = dict[str, np.ndarray]
Run = Callable[[Feeds], list[np.ndarray]]
"""Feeds by input name -> the list of outputs."""
Load = Callable[[onnx.ModelProto], Run]
"""A small model -> what runs it."""

# Run in float32 at least. E[x^2] - E[x]^2 loses three digits; constants in half precision (sqrt(C))
# are off by 5e-4. A wrong axis, mean or epsilon shows as 1e-2 and more.
TOLERANCE = 1e-4
HALF_TOLERANCE = 5e-3
LARGEST_INPUT = 1 << 24  # elements
SMALLEST_EPSILON = 1e-30  # below it nothing of it is seen in float32
WITHOUT_EPSILON = 1e-2  # size of the small inputs where there is none: an epsilon of 1e-8 would show
# Sizes for dimensions that are not known, all different, so that a wrong axis cannot fit by chance.
FREE_SIZES = ((2, 3, 5, 7, 4), (3, 1, 4, 2, 5))


def load_reference(model: onnx.ModelProto) -> Run:
    """The model in onnx's own reference evaluator."""
    evaluator = ReferenceEvaluator(model)
    return lambda feeds: list(evaluator.run(None, feeds))


def definition(site: NormSite, x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None) -> np.ndarray:
    """What the site must compute, in float64.

    RMSNorm: Zhang and Sennrich, arXiv 1910.07467; LayerNorm: Ba et al., arXiv 1607.06450.
    """
    value = x.astype(np.float64)
    if site.kind == "layer":
        value = value - value.mean(site.axes, keepdims=True)
    value = value / np.sqrt((value**2).mean(site.axes, keepdims=True) + site.epsilon)
    value = value if weight is None else value * weight.astype(np.float64)
    return value if bias is None else value + bias.astype(np.float64)


class Prover:
    """Runs sites of one graph against the definition; equal structures are run once."""

    def __init__(self, index: GraphIndex, load: Load | None = None) -> None:
        self._index = index
        self._load = load or load_reference
        self._known: dict[bytes, str | None] = {}

    def judge(self, site: NormSite) -> NormSite | NearMiss:
        """The site if it computes what it should, else a near miss that says how far it is off."""
        reason = self._refute(extract(self._index, site), site)
        return site if reason is None else NearMiss(site.name, reason)

    def _refute(self, extracted: Extract, site: NormSite) -> str | None:
        shapes = list(_shapes(self._index, site, extracted))
        key = _digest(extracted, site, shapes)
        if key not in self._known:
            self._known[key] = self._try(extracted, site, shapes)
        return self._known[key]

    def _try(self, extracted: Extract, site: NormSite, shapes: list[dict[str, tuple[int, ...]]]) -> str | None:
        """The verdict on the first shapes that run, checked once more on the next that do."""
        verdicts, failure = 0, "its shapes are not known"
        run = None
        for assigned in shapes:
            try:
                run = run or self._load(extracted.model)
                error = self._error(extracted, site, assigned, run)
            except Exception as problem:  # a runtime raises what it likes: wrong shapes, missing kernels
                failure = str(problem).strip().splitlines()[0] if str(problem).strip() else repr(problem)
                logger.debug("%s: shapes %s do not run: %s", site.name, assigned, failure)
                continue
            if not error <= _tolerance(self._index, site):
                return (
                    f"looks like {site.kind} norm {site.form}, but computes something else: relative error {error:.2g}"
                )
            verdicts += 1
            if verdicts == 2:
                break
        return None if verdicts else f"looks like a norm, but could not be run to prove it: {failure}"

    def _error(self, extracted: Extract, site: NormSite, shapes: Mapping[str, tuple[int, ...]], run: Run) -> float:
        """The largest relative error over inputs of size 1 and of the size of sqrt(epsilon).

        The small ones show a wrong epsilon, which inputs of size 1 would hide.
        """
        small = 3 * math.sqrt(site.epsilon) if site.epsilon > SMALLEST_EPSILON else WITHOUT_EPSILON
        errors = []
        for scale in (2.0, small):
            feeds = _feeds(self._index, site, extracted, shapes, scale)
            by_value = {value: feeds[name] for name, value in extracted.inputs.items()}
            assert site.x is not None
            weight = by_value[site.weight] if site.weight is not None else None
            bias = by_value[site.bias] if site.bias is not None else None
            wanted = definition(site, by_value[site.x], weight, bias)
            (got,) = run(feeds)
            if got.shape != wanted.shape:
                raise ValueError(f"the nodes give shape {got.shape}, the norm {wanted.shape}")
            errors.append(float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)))
        return max(errors) if not any(math.isnan(e) for e in errors) else math.inf


def _tolerance(index: GraphIndex, site: NormSite) -> float:
    halves = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    half = any(index.dtype(output) in halves for node in site.nodes for output in node.outputs)
    return HALF_TOLERANCE if half else TOLERANCE


def _digest(extracted: Extract, site: NormSite, shapes: list[dict[str, tuple[int, ...]]]) -> bytes:
    """Equal for sites with the same nodes, constants, shapes and reading."""
    known = {site.bias: "bias", site.weight: "weight", site.x: "x"}
    roles = [known.get(value, "") for value in extracted.inputs.values()]
    text = repr((site.kind, site.epsilon, site.axes, roles, shapes))
    return hashlib.sha256(extracted.model.SerializeToString(deterministic=True) + text.encode()).digest()


def _shapes(index: GraphIndex, site: NormSite, extracted: Extract) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes of the inputs to try: first with few rows, then with the sizes that the file gives."""
    for shrink, free in ((True, FREE_SIZES[0]), (True, FREE_SIZES[1]), (False, FREE_SIZES[0])):
        assigned = _assign(index, site, extracted, shrink, free)
        if all(math.prod(shape) <= LARGEST_INPUT for shape in assigned.values()):
            yield assigned


def _assign(
    index: GraphIndex, site: NormSite, extracted: Extract, shrink: bool, free: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """A size for every dimension; dimensions of one symbol have one size in all inputs."""
    assert site.x is not None
    symbols: dict[str, int] = {}
    places = len(free) - 1

    def size(dimension: object, place: int, fixed: bool = False) -> int:
        unknown = free[min(place, places)]
        if isinstance(dimension, int):
            return min(dimension, unknown) if shrink and not fixed else dimension
        symbol = getattr(dimension, "value", None)
        return unknown if symbol is None else symbols.setdefault(symbol, unknown)

    rank = index.rank(site.x) or site.rank or max(3, len(site.axes))
    known = index.shape(site.x) or (None,) * rank
    dims = known if site.x.shape is None else tuple(site.x.shape)
    x = [size(d, i, _parameter_size(index, site, i - rank) is not None) for i, d in enumerate(dims)]
    for axis in site.axes:
        x[axis] = known[axis] or _parameter_size(index, site, axis) or x[axis] + 3
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in extracted.inputs.items():
        if value is site.x:
            shapes[name] = tuple(x)
        elif value in (site.weight, site.bias):
            shapes[name] = _parameter_shape(index, site, value, x)
        else:
            shapes[name] = tuple(size(d, i) for i, d in enumerate(value.shape or ()))
    return shapes


def _parameter_size(index: GraphIndex, site: NormSite, axis: int) -> int | None:
    """The size of an axis as weight or bias tell it."""
    for value in (site.weight, site.bias):
        shape = index.shape(value)
        if shape is not None and len(shape) >= -axis and shape[axis] not in (1, None):
            return shape[axis]
    return None


def _parameter_shape(index: GraphIndex, site: NormSite, value: ir.Value, x: list[int]) -> tuple[int, ...]:
    shape = index.shape(value)
    if shape is None:
        return tuple(x[a] for a in site.axes)
    return tuple(d if d is not None else x[i - len(shape)] for i, d in enumerate(shape))


def _feeds(
    index: GraphIndex, site: NormSite, extracted: Extract, shapes: Mapping[str, tuple[int, ...]], scale: float
) -> Feeds:
    """Random inputs: x off centre and of another size in every row, so that a mistake shows."""
    random = np.random.default_rng(0)
    feeds: Feeds = {}
    for name, value in extracted.inputs.items():
        shape = shapes[name]
        if value is site.x:
            rows = [1 if i - len(shape) in site.axes else d for i, d in enumerate(shape)]
            data = (random.standard_normal(shape) + 0.7) * random.uniform(0.5, 1.5, rows) * scale
        elif value is site.weight:
            data = random.uniform(0.5, 1.5, shape)
        else:
            data = random.standard_normal(shape)
        feeds[name] = np.asarray(data, helper.tensor_dtype_to_np_dtype(tensor_type(index, value)))
    return feeds

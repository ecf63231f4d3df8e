"""Random graphs of norms in every spelling, with residuals, layers, casts and transposes around them.

compose(seed) writes the original; compose(seed, by_hand) the same graph, in which each norm is what `by_hand` writes.
All that is random apart from the norms' own weights comes from the seed alone, so that the two are alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from tests.builders import layer_forms, one_node_forms, rms_forms
from tests.builders.cases import CHANNELS, FormCase
from tests.builders.graph import NUMPY, Graph
from tests.builders.installed import NEWEST

SHAPE = (2, 3, CHANNELS)
TYPES = ("float32", "float16", "double")
OPSETS = range(13, NEWEST + 1)


_APART = {
    "A10-shadows-contrib",  # its local function would be called by the SkipLayerNormalization of others
    "B10",  # ranks behind its Reshape are not known, and a norm with axes counted from the front is refused there
}


def _is_alone(form: FormCase) -> bool:
    """One norm over the channels of any value of rank 3, of the type of x, that ONNX Runtime runs."""
    if form.id in _APART or form.expected[0].form == "A6":  # an EmbedLayerNormalization reads no x
        return False
    usual = form.shape == SHAPE and form.declared is None and form.out_dtype is None and not form.reference_only
    return usual and len(form.expected) == 1 and form.expected[0].axes == (-1,)


FORMS = [form for form in (*rms_forms.FORMS, *layer_forms.FORMS, *one_node_forms.FORMS) if _is_alone(form)]
PLAIN = [form for form in FORMS if form.definition is None and form.constant_weight]
"""Those that are the norm of x times a weight of the file plus a bias: a function can be put there by hand."""
MOVABLE = [form for form in PLAIN if form.id != "B11-reshape"]
"""Those that run on other leading sizes than SHAPE's."""
WHOLE = [form for form in MOVABLE if form.expected[0].form not in ("B8", "B9")]
"""Those that become one node of ours; the others' scale or bias stays a node of its own."""


@dataclasses.dataclass(frozen=True)
class Norm:
    """A norm as it was written: the value that it gives, the type that it is computed in, and its weight and bias
    [CHANNELS] in float64."""

    form: FormCase
    y: str
    dtype: str
    weight: np.ndarray
    bias: np.ndarray


@dataclasses.dataclass(frozen=True)
class Composed:
    """A model, what it is fed, and its norms in the order of the file."""

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    norms: tuple[Norm, ...]

    @property
    def dtype(self) -> str:
        """The narrowest type in which a norm is computed."""
        return min((norm.dtype for norm in self.norms), key=lambda dtype: NUMPY[dtype].itemsize)


ByHand = Callable[[Graph, str, int], str]
"""(graph, x, number of the norm in the file) -> y."""


class _Composer(Graph):
    """A Graph into which several pieces can be written: names of weights are their own, and some are shared."""

    def __init__(self, opset: int, rng: np.random.Generator, by_hand: ByHand | None) -> None:
        super().__init__("float32", opset)
        self.decisions, self.by_hand = rng, by_hand
        self.types = TYPES
        self.written: list[Norm] = []
        self.read: set[str] = set()
        self._pool: dict[tuple[str, tuple[int, ...], str], tuple[str, np.ndarray]] = {}
        self._shares = bool(rng.random() < 0.3)

    def initializer(self, array: Any, name: str = "", dtype: str | None = None) -> str:
        return super().initializer(array, self.fresh(name) if name else "", dtype)

    def op(self, op_type: str, *inputs: str, outputs: int | Sequence[str] = 1, domain: str = "", **attrs: Any) -> Any:
        names = outputs if isinstance(outputs, int) else [self.fresh(name) if name else "" for name in outputs]
        return super().op(op_type, *inputs, outputs=names, domain=domain, **attrs)

    def input(self, name: str, array: np.ndarray, shape: Sequence[int | str] | None = None) -> str:
        return super().input(name if name.startswith("x") else self.fresh(name), array, shape)

    def weight(self, *shape: int, dtype: str | None = None, name: str = "weight") -> str:
        return self._shared(super().weight, shape, dtype or self.dtype, name)

    def bias(self, *shape: int, dtype: str | None = None, name: str = "bias") -> str:
        return self._shared(super().bias, shape, dtype or self.dtype, name)

    def _shared(self, write: Callable[..., str], shape: tuple[int, ...], dtype: str, name: str) -> str:
        key = (name, shape, dtype)
        if self._shares and key in self._pool:
            self.params[name] = self._pool[key][1]
            return self._pool[key][0]
        written = write(*shape, dtype=dtype, name=name)
        self._pool[key] = written, self.params[name]
        return written

    def norm(self, x: str, form: FormCase, dtype: str) -> str:
        """The norm of x, a value in float32, computed in `dtype`."""
        inner = x if dtype == "float32" else self.cast(x, dtype)
        number, self.params = len(self.written), {}
        self.dtype = dtype
        y = form.piece(self, inner) if self.by_hand is None else self.by_hand(self, inner, number)
        self.dtype = "float32"
        weight, bias = (self._vector(name, fill) for name, fill in (("weight", 1.0), ("bias", 0.0)))
        self.written.append(Norm(form, y, dtype, weight, bias))
        return y if dtype == "float32" else self.cast(y, "float32")

    def _vector(self, name: str, fill: float) -> np.ndarray:
        """A parameter of the last norm as it is for each channel; of no meaning in forms that are not PLAIN."""
        values = np.asarray(self.params.get(name, fill), np.float64).reshape(-1)
        return np.resize(values, CHANNELS)

    def unique_functions(self) -> None:
        """A spelling that is a local function brings it each time."""
        self.functions = list({(f.domain, f.name): f for f in self.functions}.values())


def compose(
    seed: int, by_hand: ByHand | None = None, forms: Sequence[FormCase] = FORMS, types: Sequence[str] = TYPES
) -> Composed:
    """The graph of this seed, of `forms`; with `by_hand`, its norms as that writes them.

    It is in the first of `types`, now and then in the others.
    """
    rng = np.random.default_rng(seed)
    g = _Composer(int(rng.choice(OPSETS)), rng, by_hand)
    g.types = types
    values = [g.normal_input("x", SHAPE, ("batch", "tokens", CHANNELS))]
    layers: list[str] = []
    for _ in range(rng.integers(4, 14)):
        values.append(_step(g, values, layers, forms))
    if not g.written:
        values.append(_norm(g, values[-1], forms))
    _outputs(g, values)
    g.unique_functions()
    return Composed(g.model(), g.feeds, tuple(g.written))


def _step(g: _Composer, values: Sequence[str], layers: list[str], forms: Sequence[FormCase]) -> str:
    """One more value [batch, tokens, CHANNELS] in float32, mostly of the last ones."""
    rng, movable = g.decisions, [form for form in forms if form in MOVABLE]
    recent = values[-3:]
    x, other = (recent[rng.integers(len(recent))] for _ in range(2))
    g.read |= {x}
    kind = rng.choice(["norm", "layer", "residual", "transposed", "flat", "cast", "gate"], p=[0.4, *6 * [0.1]])
    if kind == "norm":
        return _norm(g, x, forms)
    if kind == "layer":
        return _layer(g, x, layers)
    if kind == "residual" and other != x:  # a norm of x + x is one of x, and its function another
        g.read |= {other}
        return g.op("Add", x, other)
    if kind == "transposed":
        turned = g.op("Transpose", x, perm=[1, 0, 2])
        return g.op("Transpose", _norm(g, turned, movable), perm=[1, 0, 2])
    if kind == "flat":
        flat = g.op("Reshape", x, g.ints(1, -1, CHANNELS))
        return g.op("Reshape", _norm(g, flat, movable), g.op("Shape", x))
    if kind == "cast" or other == x:
        return g.cast(_layer(g, g.cast(x, g.types[-1]), [], g.types[-1]), "float32")
    g.read |= {other}
    return g.op("Mul", x, g.op("Sigmoid", other))


def _norm(g: _Composer, x: str, forms: Sequence[FormCase]) -> str:
    dtype = str(g.decisions.choice(g.types, p=[0.8, 0.1, 0.1]))
    able = [form for form in forms if dtype in form.dtypes and g.opset in form.opsets(dtype)]
    return g.norm(x, able[g.decisions.integers(len(able))], dtype)


def _layer(g: _Composer, x: str, layers: list[str], dtype: str = "float32") -> str:
    """A MatMul whose weight may be that of an earlier one of `layers`, with a bias or without; x is of `dtype`."""
    rng = g.decisions
    if not layers or rng.random() < 0.7:
        layers.append(g.initializer(rng.normal(size=(CHANNELS, CHANNELS)) / np.sqrt(CHANNELS), dtype=dtype))
    y = g.op("MatMul", x, layers[rng.integers(len(layers))])
    return g.op("Add", y, g.initializer(rng.normal(size=CHANNELS), dtype=dtype)) if rng.random() < 0.5 else y


def _outputs(g: _Composer, values: Sequence[str]) -> None:
    """Some of the values, and the sum of those that nothing reads: no norm is for nothing."""
    chosen = [value for value in values[1:] if g.decisions.random() < 0.2]
    unread = [value for value in values if value not in g.read and value not in chosen]
    if unread:
        total = unread[0]
        for value in unread[1:]:
            total = g.op("Add", total, value)
        chosen.append(total)
    for value in dict.fromkeys(chosen):
        g.output(value)

"""What holds for every composed graph: `--to rmsnorm` keeps its outputs, `--to dyisru` is the graph built by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from dynorm_onnx import convert_model
from dynorm_onnx.functions import DOMAIN
from dynorm_onnx.graph.lower import LoweredNorm
from tests.builders.convert import found_in, lowered, reasons, replaced
from tests.builders.execute import run_ort
from tests.builders.graph import Graph
from tests.differential.composer import PLAIN, WHOLE, ByHand, Composed, Norm, compose
from tests.tolerances import TOLERANCE, relative_error

SINGLE = 3 * ("float32",)
BETA = 2.0
"""What builders.convert.replaced() gives each parameter that is not fitted."""


def check_rewrite(composed: Composed) -> None:
    """Every norm is found, and the outputs stay."""
    prepared, _ = _every_norm(composed)
    _compare(run_ort(ir.to_proto(prepared), composed.feeds), run_ort(composed.model, composed.feeds), composed)


def check_replacement(seed: int) -> None:
    """The converted graph is that of the seed with functions in the place of its norms."""
    original = compose(seed, forms=PLAIN)
    converted = replaced(*_every_norm(original), "dyisru")
    expected = compose(seed, by_hand(original.norms), forms=PLAIN)
    _compare(run_ort(converted, original.feeds), run_ort(expected.model, expected.feeds), original)


def _every_norm(composed: Composed) -> tuple[ir.Model, tuple[LoweredNorm, ...]]:
    """The model, lowered, and its norms; all were found."""
    prepared, norms = lowered(composed.model)
    written = Counter(norm.form.expected[0].form for norm in composed.norms)
    missing = written - Counter(norm.form for norm in norms)
    assert len(norms) == len(composed.norms), f"not found: {dict(missing)}: {reasons(found_in(composed.model)[1])}"
    return prepared, norms


def by_hand(norms: Sequence[Norm], parameters: Sequence[Mapping[str, np.ndarray]] | None = None) -> ByHand:
    """Writes DyISRU, weight * x / sqrt(beta + x^2) + bias, in the place of each of the norms; with the norms' own
    weights and bias, or with what `parameters` has for each of them."""
    if parameters is None:
        parameters = [{"weight": norm.weight, "bias": norm.bias, "beta": np.float64(BETA)} for norm in norms]
    assert len(parameters) == len(norms)

    def write(g: Graph, x: str, number: int) -> str:
        dtype = norms[number].dtype
        wide = "double" if dtype == "double" else "float32"
        x = x if dtype == wide else g.cast(x, wide)
        weight, bias, beta = (g.initializer(parameters[number][n], dtype=wide) for n in ("weight", "bias", "beta"))
        root = g.op("Sqrt", g.op("Add", g.op("Mul", x, x), beta))
        y = g.op("Add", g.op("Mul", g.op("Div", x, root), weight), bias)
        return y if dtype == wide else g.cast(y, dtype)

    return write


def _compare(out: list[np.ndarray], reference: list[np.ndarray], composed: Composed) -> None:
    """Two orders of the same sums: a rounding or two in each norm, and norms enlarge what came before."""
    bound = 10 * TOLERANCE[composed.dtype if composed.dtype != "double" else "float32"]
    for number, (a, b) in enumerate(zip(out, reference, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape
        error = relative_error(a, b)
        assert error < bound, f"output {number}: relative error {error:.2g}, more than {bound:.0e}"


def check_conversion(seed: int, folder: Path) -> None:
    """The same of whole conversions: by default settings to rmsnorm; fitted, as it stands in the file, to DyISRU.

    In float32 alone: ONNX Runtime 1.32 fuses some LayerNorms in others into what it then does not load.
    """
    original = compose(seed, forms=WHOLE, types=SINGLE)
    source, path = folder / f"{seed}.onnx", folder / f"{seed}.out.onnx"
    onnx.save(original.model, source)
    knobs = {"data": _samples(original), "output": path, "time": False}
    reference = run_ort(original.model, original.feeds)
    convert_model(source, to="rmsnorm", **knobs)
    _compare(run_ort(onnx.load(path), original.feeds), reference, original)
    convert_model(source, method="fit", rotate=False, fold=False, optimize="none", coupled=0, **knobs)
    converted = onnx.load(path)
    expected = compose(seed, by_hand(original.norms, _parameters(converted, original)), forms=WHOLE, types=SINGLE)
    _compare(run_ort(converted, original.feeds), run_ort(expected.model, expected.feeds), original)


def _samples(composed: Composed) -> list[dict[str, np.ndarray]]:
    """Sixteen samples of the one input of the model."""
    rng = np.random.default_rng(0)
    ((name, x),) = composed.feeds.items()
    return [{name: rng.normal(size=(1, *x.shape[1:])).astype(x.dtype)} for _ in range(16)]


def _parameters(converted: onnx.ModelProto, original: Composed) -> list[dict[str, np.ndarray]]:
    """Weight, bias and beta of the node that each norm has become, which gives what the norm gave, or a Cast of it."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in converted.graph.initializer}
    ours = {node.output[0]: node.input[-3:] for node in converted.graph.node if node.domain == DOMAIN}
    readers = {name: node.output[0] for node in original.model.graph.node for name in node.input}
    parameters = []
    for norm in original.norms:
        inputs = ours[norm.y if norm.y in ours else readers[norm.y]]
        parameters.append(dict(zip(("weight", "bias", "beta"), map(arrays.get, inputs), strict=True)))
    return parameters

"""Bounds of values: they hold, they are infinite where nothing bounds a value, and they are found in real models."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from dynorm_onnx.bench.models import make_untrained
from dynorm_onnx.graph.values.magnitude import Magnitudes
from dynorm_onnx.runtime.session import make_session
from tests.builders.execute import run_model
from tests.shipped import MODEL

RNG = np.random.default_rng(5)
WEIGHTS = {
    "w": RNG.normal(size=(4, 4)).astype(np.float32),
    "g": RNG.normal(size=(5, 16)).astype(np.float32),
    "b": RNG.normal(size=4).astype(np.float32),
    "c": RNG.normal(size=5).astype(np.float32),
    "k": RNG.normal(size=(5, 4, 1)).astype(np.float32),
    "two": np.float32(2),
    "low": np.float32(-3),
}
X = RNG.normal(0, 50, (2, 4, 4)).astype(np.float32)


def bound_and_run(body: str) -> tuple[float, float]:
    """(the bound of y, the largest |y| of a run) where y = body(x); t is tanh x."""
    shape = "e,f" if "Gemm" in body else "d,e,f"
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18]>
        g (float[2,4,4] x) => (float[{shape}] y) {{ t = Tanh(x) {body} }}"""
    )
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in WEIGHTS.items())
    loaded = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    return Magnitudes(loaded)(loaded.graph.outputs[0]), float(np.abs(run_model(model, {"x": X})[0]).max())


@pytest.mark.parametrize(
    "body",
    [
        "y = Mul(t, b)", "y = Add(t, b)", "y = Sub(b, t)", "y = MatMul(t, w)", "y = Div(t, two)", "y = Pow(t, two)",
        "m = MatMul(t, w) y = Mul(m, m)", "y = Clip(x, low, two)", "y = Max(t, b)", "y = Concat<axis = 0>(t, t)",
        "y = LayerNormalization(x, b, b)", "s = Softmax<axis = -1>(x) y = MatMul(s, t)", "y = Conv(t, k, c)",
        "s = Softmax<axis = 2>(x) z = Sub(b, b) n = IsNaN(s) m = Where(n, t, t) y = MatMul(m, w)",
        "k3 = Constant<value_float = 3.0>() y = Mul(t, k3)", "y, z = Split<num_outputs = 2>(t)",
        "y = Transpose<perm = [1, 0, 2]>(t)", "q = Mul(t, t) y = Sqrt(q)", "y = MatMul(t, t)",
        "n = IsNaN(x) y = Cast<to = 1>(n)", "f = Flatten(t) y = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(f, g, c)",
    ],
    ids=lambda body: body.rpartition("= ")[2] if "Softmax" not in body else f"{len(body)} {body[-12:]}",
)  # fmt: skip
def test_bounds_hold(body: str) -> None:
    bound, seen = bound_and_run(body)
    assert seen <= bound * (1 + 1e-6) < math.inf


@pytest.mark.parametrize(
    "body", ["y = Identity(x)", "y = Add(x, t)", "y = Div(b, t)", "y = Exp(t)", "y = MatMul(x, w)", "y = Div(t, x)"]
)
def test_what_nothing_bounds(body: str) -> None:
    assert bound_and_run(body)[0] == math.inf


FUSED = {
    "MultiHeadAttention": "y = com.microsoft.MultiHeadAttention<num_heads = 2>(t, t, t)",
    "MultiHeadAttention with a bias": "y = com.microsoft.MultiHeadAttention<num_heads = 2>(t, t, t, b3)",
    "Attention": "y = com.microsoft.Attention<num_heads = 2>(t, w3, b3)",
    "GroupQueryAttention": "y, p, q = com.microsoft.GroupQueryAttention<num_heads = 1, kv_num_heads = 1>"
    "(t8, t8, t8, , , n, m)",
    "RotaryEmbedding": "y = com.microsoft.RotaryEmbedding(t8, at, cs, cs)",
    "SkipLayerNormalization": "y = com.microsoft.SkipLayerNormalization(t, t, b, b)",
    "the sum of SkipLayerNormalization": "z, o, o2, y = com.microsoft.SkipLayerNormalization(t, t, b, b, b)",
    "SkipSimplifiedLayerNormalization": "y = com.microsoft.SkipSimplifiedLayerNormalization(t, t, b)",
    "FusedMatMul": "y = com.microsoft.FusedMatMul<alpha = 3.0, transB = 1>(t, w)",
    "BiasGelu": "y = com.microsoft.BiasGelu(t, b)", "FastGelu": "y = com.microsoft.FastGelu(t, b)",
    "QuickGelu": "y = com.microsoft.QuickGelu(t)", "Gelu": "y = com.microsoft.Gelu(t)",
}  # fmt: skip


@pytest.mark.parametrize("case", FUSED)
def test_bounds_of_what_onnx_runtime_fuses_hold(case: str) -> None:
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>
        g (float[2,4,4] x, float[2,4,8] x8) => (float[d,e,f] y) {{ t = Tanh(x) t8 = Tanh(x8) {FUSED[case]} }}"""
    )
    arrays = WEIGHTS | {
        "w3": RNG.normal(size=(4, 12)).astype(np.float32), "b3": RNG.normal(size=12).astype(np.float32),
        "cs": np.float32(2) * np.cos(np.arange(8, dtype=np.float32)).reshape(4, 2), "at": np.tile(np.arange(4), (2, 1)),
        "n": np.array([3, 3], np.int32), "m": np.array(4, np.int32),
    }  # fmt: skip
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items())
    loaded = ir.from_proto(model)
    bound = Magnitudes(loaded)(loaded.graph.outputs[0])
    feeds = {"x": X, "x8": np.concatenate([X, X], -1)}
    seen = float(np.abs(make_session(model).run(["y"], feeds)[0]).max())
    assert 0 < seen <= bound * (1 + 1e-6) < math.inf


def test_only_the_first_output_is_bounded_by_the_input() -> None:
    """The second holds indices."""
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float[1,2,9] x) => (float[1,2,8] v, int64[1,2,8] i) { t = Tanh(x) v, i = MaxPool<kernel_shape = [2]>(t) }"""
    )
    loaded = ir.from_proto(model)
    assert [Magnitudes(loaded)(value) for value in loaded.graph.outputs] == [1.0, math.inf]


def test_rows_that_add_up_to_one_do_not_grow() -> None:
    """However many there are; a sum along another axis knows no such thing."""
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (float[n,s] x, float[s,4] v) => (float[n,4] y) {{
            t = Tanh(v) p = Softmax<axis = {}>(x) y = MatMul(p, t) }}"""
    for axis, bound in ((-1, 1.0), (1, 1.0), (0, math.inf)):
        model = ir.from_proto(onnx.shape_inference.infer_shapes(parser.parse_model(text.format(axis))))
        assert Magnitudes(model)(model.graph.outputs[0]) == bound


def test_what_overflows_is_not_bounded() -> None:
    big = "m = Mul(t, h) n = Mul(m, h) y = Mul(n, s)"
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18]>
        g (float[2,4,4] x) => (float[2,4,4] y) <float h = {{1e30}}, float s = {{1e-30}}> {{ t = Tanh(x) {big} }}"""
    )
    loaded = ir.from_proto(model)
    assert Magnitudes(loaded)(loaded.graph.outputs[0]) == math.inf
    assert not np.isfinite(run_model(model, {"x": X})[0]).all()


def test_an_initializer_that_a_run_may_overrule() -> None:
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float[4] x, float[4] b = {1, 2, 3, 4}) => (float[4] y) { t = Tanh(x) y = Mul(t, b) }"""
    )
    loaded = ir.from_proto(model)
    assert Magnitudes(loaded)(loaded.graph.outputs[0]) == math.inf


@pytest.mark.parametrize("function", ["dyisru", "dyt", "derf"])
def test_every_replaced_norm_of_the_shipped_model_reads_what_is_bounded(function: str) -> None:
    """Token ids come in: all else is weights, functions that are bounded, and attention's averages."""
    model = make_untrained(MODEL, function, optimize="none")
    bounds = Magnitudes(model)
    read = [value for node in model.graph if node.domain == "dynorm" for value in node.inputs[:1]]
    assert len(read) == 9
    assert all(0 < bounds(value) < 1e12 for value in read)

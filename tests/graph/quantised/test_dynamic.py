"""Products of whole numbers, x quantised where the model runs: read as ONNX Runtime computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from dynorm_onnx.graph.linear.find import find_linear_layers
from tests.graph.quantised.checks import check_layer, check_output, check_round_trip, layer_of, model_of, reason
from tests.tolerances import TOLERANCE

# Whole numbers from -100 to 155: DynamicQuantizeLinear finds the scale 1 and rounds nothing.
X = np.random.default_rng(0).integers(-99, 155, (5, 12)).astype(np.float32)
X[0, :2] = -100, 155
QUANTISED = "xq, xs, xz = DynamicQuantizeLinear(x)"
INTEGER = f"{QUANTISED} i = MatMulInteger(xq, q, xz, z) c = Cast<to = 1>(i)"
LIMITS = {np.int8: (-64, 65), np.uint8: (0, 128)}  # so that no kernel's sum of two products is cut off


def product(text: str, scales: tuple[int, ...], dtype: type = np.int8) -> ir.Model:
    """x [n, 12] times a weight of 12 x 8."""
    rng = np.random.default_rng(1)
    arrays = {
        "q": rng.integers(*LIMITS[dtype], (12, 8)).astype(dtype),
        "s": rng.uniform(0.01, 0.1, scales).astype(np.float32),
        "z": rng.integers(*LIMITS[dtype], scales).astype(dtype), "bias": rng.normal(size=8).astype(np.float32),
    }  # fmt: skip
    return model_of(f"g (float[n,12] x) => (float[n,8] y) {{ {text} }}", arrays)


@pytest.mark.parametrize(("text", "scales", "dtype"), [
    (f"{INTEGER} b = Mul(xs, s) y = Mul(c, b)", (), np.int8),
    (f"{INTEGER} b = Mul(xs, s) y = Mul(c, b)", (8,), np.uint8),
    (f"{INTEGER} b = Mul(s, xs) m = Mul(b, c) y = Add(m, bias)", (8,), np.int8),
    (f"{INTEGER} m = Mul(c, s) y = Mul(xs, m)", (8,), np.int8),
    (f"{INTEGER} m = Mul(c, xs) y = Mul(s, m)", (1,), np.int8),
    (f"{INTEGER} y = Mul(c, xs)", (8,), np.int8),
    (f"{QUANTISED} y = com.microsoft.MatMulIntegerToFloat(xq, q, xs, s, xz, z, bias)", (8,), np.uint8),
    (f"{QUANTISED} y = com.microsoft.MatMulIntegerToFloat(xq, q, xs, s, xz)", (1,), np.int8),
    ("y = com.microsoft.DynamicQuantizeMatMul(x, q, s, z, bias)", (8,), np.int8),
    ("y = com.microsoft.DynamicQuantizeMatMul(x, q, s)", (1,), np.uint8),
], ids=["one", "columns", "bias", "one after the other", "x first", "no scale", "to float", "to float, one", "fused",
        "fused, one"])  # fmt: skip
def test_what_is_read_is_what_runs(text: str, scales: tuple[int, ...], dtype: type) -> None:
    layer = check_layer(product(text, scales, dtype), X, TOLERANCE["float32"])
    assert (layer.inputs, layer.outputs, layer.x.name) == (12, 8, "x")
    assert layer.y is not None and layer.y.name == "y"
    assert (layer.bias is not None) is ("bias" in text) and layer.has_free_scales is not text.endswith("y = Mul(c, xs)")
    changed = {node for node in layer.nodes for value in node.inputs if value in layer.initializers}
    assert {reader for value in layer.initializers for reader in value.consumers()} == changed


def test_scales_whose_product_others_read_stay() -> None:
    text = f"{INTEGER} b = Mul(xs, s) m = Mul(c, b) e = ReduceMean(b) y = Add(m, e)"
    assert not layer_of(product(text, (8,))).has_free_scales


@pytest.mark.parametrize(("text", "said"), [
    ("xq, xs, xz = DynamicQuantizeLinear(x) i = MatMulInteger(xq, q, z) y = Cast<to = 1>(i)", "not from a Dynamic"),
    (f"{INTEGER} y = Mul(c, s)", "Muls by the scales of both operands"),
    (f"{INTEGER} y = Neg(c)", "Muls by the scales of both operands"),
    (f"{QUANTISED} y = com.microsoft.MatMulIntegerToFloat(xq, q, s, s, xz)", "not from a DynamicQuantizeLinear"),
    (f"{QUANTISED} i = MatMulInteger(xq, q, xz) c = Cast<to = 1>(i) m = Mul(c, xs) h = MatMulInteger(q, q) "
     "k = Cast<to = 1>(h) y = Add(m, k)", "read in 3 places"),
], ids=["zero point", "no scale of x", "no scale", "another scale", "shared"])  # fmt: skip
def test_what_is_not_read_is_named(text: str, said: str) -> None:
    left = find_linear_layers(product(text, (1,) if "MatMulIntegerToFloat" in text else ()).graph).left
    assert any("its weights are quantised, and " in why and said in why for why in left.values())


def test_scales_that_do_not_fit_are_named() -> None:
    assert "do not fit a weight of [12, 8]" in reason(product(f"{INTEGER} b = Mul(xs, s) y = Mul(c, b)", (8, 1)))


@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8], ids=str)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_what_quantize_dynamic_writes(kind: QuantType, per_channel: bool, bias: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(12, 8)).astype(np.float32)
    text = "m = MatMul(x, w) y = Add(m, b)" if bias else "y = MatMul(x, w)"
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[n,12] x) => (float[n,8] y) {{ {text} }}'
    )
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    if bias:
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(size=8).astype(np.float32), "b"))
    onnx.save(proto, tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "q.onnx", per_channel=per_channel, reduce_range=True,
                     weight_type=kind)  # fmt: skip
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "q.onnx")))
    layer = layer_of(model)
    assert layer.has_free_scales and layer.stored.scale.numbers.size == (8 if per_channel else 1)
    assert layer.x.name == "x" and (layer.bias is not None) is bias
    check_round_trip(layer)
    check_output(model, layer, X, TOLERANCE["float32"])
    assert np.linalg.norm(layer.matrix() - weight) < 0.02 * np.linalg.norm(weight)

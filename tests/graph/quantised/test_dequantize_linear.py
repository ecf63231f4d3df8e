"""Weights behind DequantizeLinear are read as ONNX Runtime computes them, and written back as they were."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from dynorm_onnx.graph.linear.find import find_linear_layers
from tests.graph.quantised.checks import check_layer, check_round_trip, layer_of, model_of, reason
from tests.tolerances import TOLERANCE

INT8, UINT8 = np.dtype(np.int8), np.dtype(np.uint8)
INT4, UINT4 = np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4)
LIMITS = {INT8: (-128, 128), UINT8: (0, 256), INT4: (-8, 8), UINT4: (0, 16)}
X = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
MATMUL, TURNED = "y = MatMul(x, d)", "t = Transpose<perm = [1, 0]>(d) y = MatMul(x, t)"
GEMM = "y = Gemm<transB = 1, alpha = 0.5>(x, d, bias)"
HALVES = "f = Cast<to = 1>(d) y = MatMul(x, f)"


def product(
    text: str, dtype: np.dtype, scales: tuple[int, ...], attributes: str = "", *, zeros: bool = True, half: bool = False
) -> ir.Model:
    """x [n, 12] times a dequantised weight of 12 x 8, or of 8 x 12 where `text` transposes it."""
    rng = np.random.default_rng(1)
    shape = (8, 12) if "trans" in text.lower() else (12, 8)
    arrays = {
        "q": rng.integers(*LIMITS[dtype], shape).astype(np.int16).astype(dtype),
        "s": rng.uniform(0.01, 0.1, scales).astype(np.float16 if half else np.float32),
        "z": rng.integers(*LIMITS[dtype], scales).astype(np.int16).astype(dtype),
        "bias": rng.normal(size=8).astype(np.float32),
        "whole": np.arange(8, dtype=np.int32), "s_b": np.array(0.1, np.float32),
    }  # fmt: skip
    made = f"d = DequantizeLinear{attributes}(q, s{', z' if zeros else ''})"
    return model_of(f"g (float[n,12] x) => (float[n,8] y) {{ {made} {text} }}", arrays)


@pytest.mark.parametrize(("text", "dtype", "scales", "attributes", "zeros"), [
    (MATMUL, INT8, (), "", False), (MATMUL, UINT8, (), "", True), (MATMUL, UINT8, (1,), "", True),
    (MATMUL, INT8, (8,), "<axis = 1>", True), (MATMUL, INT8, (12,), "<axis = 0>", False),
    (TURNED, INT8, (8,), "<axis = 0>", True), (GEMM, UINT8, (8,), "<axis = -2>", True), (GEMM, INT8, (), "", False),
    (MATMUL, INT4, (3, 8), "<axis = 0, block_size = 4>", True),
    (MATMUL, UINT4, (12, 2), "<axis = 1, block_size = 4>", True),
    (TURNED, INT4, (8, 2), "<axis = 1, block_size = 6>", False), (MATMUL, UINT4, (8,), "<axis = 1>", True),
], ids=str)  # fmt: skip
def test_what_is_read_is_what_runs(
    text: str, dtype: np.dtype, scales: tuple[int, ...], attributes: str, zeros: bool
) -> None:
    layer = check_layer(product(text, dtype, scales, attributes, zeros=zeros), X, TOLERANCE["float32"])
    assert (layer.inputs, layer.outputs, layer.has_free_scales) == (12, 8, True)
    assert (layer.bias is not None) is (text == GEMM)


def test_scales_in_half_precision() -> None:
    layer = check_layer(product(HALVES, INT8, (8,), "<axis = 1>", half=True), X, TOLERANCE["float16"])
    grid = layer.grid()
    assert grid is not None and grid.dtype == np.float16


@pytest.mark.parametrize(("numbers", "limits"), [
    ((INT8, -64, 64), (-64, 64)), ((INT8, -65, 0), (-127, 127)), ((INT8, -128, 3), (-128, 127)),
    ((UINT8, 3, 127), (0, 127)), ((UINT8, 0, 128), (0, 255)), ((INT4, -7, 7), (-8, 7)),
], ids=str)  # fmt: skip
def test_the_part_of_the_range_that_a_file_keeps_to(numbers: tuple[np.dtype, int, int], limits: tuple) -> None:
    dtype, *ends = numbers
    model = product(MATMUL, dtype, (), zeros=False)
    held = np.full((12, 8), ends[0], np.int16)
    held[0, 0] = ends[1]
    model.graph.initializers["q"].const_value = ir.tensor(held.astype(dtype), name="q")
    grid = layer_of(model).grid()
    assert grid is not None and (grid.low, grid.high) == limits


@pytest.mark.parametrize(("text", "said"), [
    ("a = MatMul(x, d) b = Neg(d) c = MatMul(x, b) y = Add(a, c)", "is read in several places"),
    ("a = MatMul(x, d) r = Shape(q) c = Cast<to = 1>(r) b = ReduceMean(c) y = Mul(a, b)", "read in 2 places"),
], ids=["weight", "numbers"])  # fmt: skip
def test_what_others_read_is_named(text: str, said: str) -> None:
    left = find_linear_layers(product(text, INT8, ()).graph).left
    assert any("DequantizeLinear: its weights are quantised" in why and said in why for why in left.values())


def test_scales_that_do_not_fit_are_named() -> None:
    model = product(MATMUL, INT8, (7,), "<axis = 1>")
    assert "its scales of shape [7] do not fit a weight of [12, 8]" in reason(model)


@pytest.mark.parametrize("text", [GEMM, "b = DequantizeLinear(whole, s_b) y = Gemm<transB = 1>(x, d, b)"])
def test_scales_beside_a_bias_of_32_bits_stay(text: str) -> None:
    """Kernels for whole numbers add such a bias unscaled: its scale is that of x times that of the weight."""
    assert layer_of(product(text, INT8, ())).has_free_scales is (text == GEMM)


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.feeds = iter([{"x": X}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8], ids=str)
def test_what_quantize_static_writes(kind: QuantType, per_channel: bool, tmp_path: Path) -> None:
    weight = np.random.default_rng(2).normal(size=(12, 8)).astype(np.float32)
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[n,12] x) => (float[n,8] y) { y = MatMul(x, w) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(proto, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "qdq.onnx", Reader(), quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8, weight_type=kind, per_channel=per_channel,
    )  # fmt: skip
    layer = layer_of(ir.from_proto(onnx.load(tmp_path / "qdq.onnx")))
    check_round_trip(layer)
    assert layer.has_free_scales and layer.stored.scale.numbers.size == (8 if per_channel else 1)
    assert np.linalg.norm(layer.matrix() - weight) < 0.02 * np.linalg.norm(weight)

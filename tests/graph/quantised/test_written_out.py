"""Weights dequantised by arithmetic are read as ONNX Runtime computes them, and written back as they were."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from dynorm_onnx.graph.linear.find import find_linear_layers
from tests.graph.quantised.checks import check_layer, layer_of, model_of, reason
from tests.tolerances import TOLERANCE

X = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
CAST, SUB, MUL = "c = Cast<to = 1>(q)", "b = Sub(c, z)", "d = Mul(b, s)"
MATMUL = "y = MatMul(x, d)"


def product(text: str, shape: tuple[int, ...], scales: tuple[int, ...], dtype: type = np.int8) -> ir.Model:
    """x [n, 12] times a weight of 12 x 8, made of whole numbers of any shape."""
    rng, limits = np.random.default_rng(1), np.iinfo(dtype)
    arrays = {
        "q": rng.integers(limits.min, limits.max + 1, shape).astype(dtype),
        "s": rng.uniform(0.01, 0.1, scales).astype(np.float16 if "to = 10" in text else np.float32),
        "z": rng.integers(-9, 9, scales).astype(np.float32), "whole": rng.integers(0, 9, scales).astype(dtype),
        "shape": np.array([12, 8] if "trans" not in text.lower() else [8, 12], np.int64),
        "bias": rng.normal(size=8).astype(np.float32),
    }  # fmt: skip
    return model_of(f"g (float[n,12] x) => (float[n,8] y) {{ {text} }}", arrays)


@pytest.mark.parametrize(("text", "shape", "scales", "dtype"), [
    (f"{CAST} {SUB} {MUL} {MATMUL}", (12, 8), (), np.int8),
    (f"{CAST} {SUB} {MUL} {MATMUL}", (12, 8), (8,), np.uint8),
    (f"{CAST} d = Mul(s, c) {MATMUL}", (12, 8), (12, 1), np.int8),
    (f"{CAST} zc = Cast<to = 1>(whole) b = Sub(c, zc) {MUL} {MATMUL}", (12, 8), (1, 8), np.uint8),
    (f"{CAST} {SUB} {MUL} t = Transpose<perm = [1, 0]>(d) y = MatMul(x, t)", (8, 12), (8, 1), np.int8),
    (f"{CAST} {SUB} {MUL} y = Gemm<transB = 1>(x, d, bias)", (8, 12), (8, 1), np.int8),
    (f"{CAST} {SUB} {MUL} r = Reshape(d, shape) y = MatMul(x, r)", (3, 4, 8), (3, 1, 8), np.int8),
    (f"{CAST} {SUB} {MUL} r = Reshape(d, shape) y = Gemm<transB = 1>(x, r)", (8, 2, 6), (8, 2, 1), np.uint8),
    (f"{CAST} {SUB} {MUL} r = Reshape(d, shape) y = Gemm<transB = 1>(x, r)", (8, 2, 6), (1, 2, 1), np.uint8),
], ids=["one", "columns", "rows", "whole zeros", "turned", "gemm", "column blocks", "row blocks",
        "a scale of many blocks"])  # fmt: skip
def test_what_is_read_is_what_runs(text: str, shape: tuple[int, ...], scales: tuple[int, ...], dtype: type) -> None:
    if scales == (1, 2, 1):  # each scale is that of two blocks a row: not one number to a place of `scales`
        stored = layer_of(product(text, shape, scales, dtype))
        assert not stored.has_free_scales
    layer = check_layer(product(text, shape, scales, dtype), X, TOLERANCE["float32"])
    assert (layer.inputs, layer.outputs) == (12, 8) and layer.has_free_scales is (scales != (1, 2, 1))


def test_scales_in_half_precision() -> None:
    text = f"c = Cast<to = 10>(q) d = Mul(c, s) f = Cast<to = 1>(d) {MATMUL.replace('d)', 'f)')}"
    layer = check_layer(product(text, (12, 8), (8,)), X, TOLERANCE["float16"])
    grid = layer.grid()
    assert grid is not None and grid.dtype == np.float16


def test_scales_that_are_computed_stay() -> None:
    text = f"{CAST} e = Exp(s) d = Mul(c, e) {MATMUL}"
    layer = check_layer(product(text, (12, 8), (8,)), X, TOLERANCE["float32"])
    assert not layer.has_free_scales


def test_scales_that_vary_within_a_block_are_named() -> None:
    model = product(f"{CAST} {MUL.replace('b', 'c')} r = Reshape(d, shape) y = MatMul(x, r)", (3, 4, 8), (3, 4, 8))
    assert "Cast, Mul, Reshape: its weights are quantised, and its scales of shape [3, 4, 8] do not fit" in reason(
        model
    )


def test_numbers_that_others_read_are_named() -> None:
    text = f"{CAST} d = Mul(c, s) m = MatMul(x, d) e = Mul(c, s) n = MatMul(x, e) y = Add(m, n)"
    found = find_linear_layers(product(text, (12, 8), ()).graph)
    assert not found.on_grid and len(found.left) == 2

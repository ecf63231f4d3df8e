"""Operators with quantised weights that are left as they are say so, each with its reason."""

from __future__ import annotations

import numpy as np
import pytest

from dynorm_onnx.graph.linear.find import find_linear_layers
from dynorm_onnx.graph.quantised.left import HELD
from tests.graph.quantised.checks import model_of

ARRAYS = {
    "q": np.ones((12, 8), np.int8), "s": np.array(0.1, np.float32), "z": np.array(0, np.int8),
    "kernel": np.ones((8, 12, 1), np.int8), "nf4": np.zeros(48, np.uint8), "most": np.ones(6, np.float32),
}  # fmt: skip


@pytest.mark.parametrize(("op_type", "text"), [
    ("QLinearMatMul",
     "i = QuantizeLinear(x, s, z) o = QLinearMatMul(i, s, z, q, s, z, s, z) y = DequantizeLinear(o, s)"),
    ("MatMulBnb4", "y = com.microsoft.MatMulBnb4<K = 12, N = 8, block_size = 16, quant_type = 1>(x, nf4, most)"),
])  # fmt: skip
def test_operators_that_are_left_are_named_with_the_reason(op_type: str, text: str) -> None:
    found = find_linear_layers(model_of(f"g (float[n,12] x) => (float[n,8] y) {{ {text} }}", ARRAYS).graph)
    assert not found.on_grid and not found.layers
    assert list(found.left.values()) == [f"{op_type}: its weights are quantised, and {HELD[op_type]}"]

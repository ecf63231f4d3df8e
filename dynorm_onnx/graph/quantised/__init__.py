"""Quantised weights of linear layers, in every spelling: what is read from a file, the grid, and what is written back.

One module for each spelling: behind DequantizeLinear, by arithmetic, MatMulNBits, products of whole numbers. Each
gives a QuantisedWeight, and who solves for it sees no spelling. In `left` is what is not re-fitted, and why.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from dynorm_onnx.graph.quantised.dynamic import dynamic_quantize_matmul, matmul_integer, matmul_integer_to_float
from dynorm_onnx.graph.quantised.grid import Blocks, Grid
from dynorm_onnx.graph.quantised.left import HELD, made_from
from dynorm_onnx.graph.quantised.matmul_nbits import matmul_nbits
from dynorm_onnx.graph.quantised.operand import weight_behind
from dynorm_onnx.graph.quantised.product import QuantisedProduct
from dynorm_onnx.graph.quantised.weight import QuantisedWeight

_READERS: dict[str, Callable[[ir.Node], QuantisedProduct | str]] = {
    "MatMulNBits": matmul_nbits,
    "MatMulInteger": matmul_integer,
    "MatMulIntegerToFloat": matmul_integer_to_float,
    "DynamicQuantizeMatMul": dynamic_quantize_matmul,
}


def quantised_product(node: ir.Node) -> QuantisedProduct | str | None:
    """What an operator that takes quantised weights multiplies by, or why that is left as it is; None: no such one."""
    reader = _READERS.get(node.op_type)
    return HELD.get(node.op_type) if reader is None else reader(node)


__all__ = ["Blocks", "Grid", "QuantisedProduct", "QuantisedWeight", "made_from", "quantised_product", "weight_behind"]

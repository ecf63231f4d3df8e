"""The quantised weight that an operand [K, N] of a product is made from, where the file dequantises it itself."""

from __future__ import annotations

import onnx_ir as ir

from dynorm_onnx.graph.quantised.dequantize_linear import dequantised
from dynorm_onnx.graph.quantised.weight import QuantisedWeight, is_read_once
from dynorm_onnx.graph.quantised.written_out import written_out

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def weight_behind(value: ir.Value, *, turned: bool = False) -> QuantisedWeight | str | None:
    """What an operand, or its transpose where `turned`, is dequantised from: through Transposes, Casts of floats and a
    Reshape of blocks. A sentence says why that cannot be re-fitted; None: it is not dequantised."""
    shape, shared = None, False
    while (node := value.producer()) is not None and node.domain == "" and node.inputs and node.inputs[0] is not None:
        shared = shared or not is_read_once(value)
        if node.op_type == "Transpose" and shape is None and _is_matrix(value):
            turned = not turned
        elif node.op_type == "Reshape" and shape is None and (known := _known_shape(value)) is not None:
            shape = known
        elif node.op_type != "Cast" or node.inputs[0].dtype not in _FLOATS:
            break
        value = node.inputs[0]
    if node is None:
        return None
    found: QuantisedWeight | str | None = None
    if node.op_type == "DequantizeLinear" and node.domain == "" and shape is None:
        found = dequantised(node, turned)
    elif node.op_type == "Mul" and node.domain == "":
        found = written_out(node, turned, shape)
    if shared and isinstance(found, QuantisedWeight):
        return "the weight that is made of its whole numbers is read in several places, which one solution cannot suit"
    return found


def _is_matrix(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 2


def _known_shape(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None:
        return None
    sizes = tuple(size for size in value.shape if isinstance(size, int))
    return sizes if len(sizes) == len(value.shape) else None

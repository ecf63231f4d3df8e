"""Sizes that a model leaves free in its inputs, and fixes all the same by the weights that read them."""

from __future__ import annotations

import onnx_ir as ir

_KEEP_LAST_AXIS = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "Identity", "Cast", "Dropout", "Clip",
        "Relu", "Sigmoid", "Tanh", "Erf", "Gelu", "Softmax",
        "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
    }
)  # fmt: skip
_BROADCAST = frozenset({"Add", "Sub", "Mul", "Div"})
_SCALED = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
_FOLLOWED = 64  # values


def channels_read(value: ir.Value) -> int | None:
    """The size of the last axis of `value` that a weight needs which reads it, itself or element by element; else None.

    None where two weights need different ones, too: what reads the second is then something else.
    """
    found: set[int] = set()
    seen, pending = {value}, [value]
    while pending and len(seen) < _FOLLOWED:
        current = pending.pop()
        for node, position in current.uses():
            size = _needed(node, position)
            if size is not None:
                found.add(size)
            if node.op_type in _KEEP_LAST_AXIS and position == 0 and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                pending.append(node.outputs[0])
    return found.pop() if len(found) == 1 else None


def _needed(node: ir.Node, position: int) -> int | None:
    if node.op_type in ("MatMul", "Gemm") and position == 0:
        transposed = node.op_type == "Gemm" and (at := node.attributes.get("transB")) is not None and at.as_int()
        if (at := node.attributes.get("transA")) is not None and at.as_int():
            return None
        return _size(node, 1, -1 if transposed else -2)
    if node.op_type in _SCALED and position == 0:
        return _vector(node, 1)
    if node.op_type in _BROADCAST and len(node.inputs) == 2:
        return _vector(node, 1 - position)
    return None


def _vector(node: ir.Node, position: int) -> int | None:
    """The last size of an operand that cannot be stretched along it."""
    size = _size(node, position, -1)
    return size if size is not None and size > 1 else None


def _size(node: ir.Node, position: int, axis: int) -> int | None:
    operand = node.inputs[position] if position < len(node.inputs) else None
    if operand is None or not operand.is_initializer() or operand.shape is None or len(operand.shape) < -axis:
        return None
    size = operand.shape[axis]
    return size if isinstance(size, int) else None

"""Weights behind DequantizeLinear, as QDQ files have them: for all, along an axis, or in blocks along one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.quantised.grid import Blocks
from dynorm_onnx.graph.quantised.weight import RANGES, Plain, QuantisedWeight, free_scales, unusable
from dynorm_onnx.graph.values.fixed import fixed_tensor


def dequantised(node: ir.Node, turned: bool) -> QuantisedWeight | str:
    """What a DequantizeLinear (opset 10 on; blocks 21 on) makes of whole numbers, or of their transpose where `turned`,
    or why that has no grid."""
    value, scale = node.inputs[0], fixed_tensor(node.inputs[1])
    has_zero = len(node.inputs) > 2 and node.inputs[2] is not None
    zero = fixed_tensor(node.inputs[2]) if has_zero else None
    if (why := unusable(value, "its whole numbers")) is not None:
        return why
    assert value is not None and value.const_value is not None
    if value.dtype not in RANGES:
        return f"{value.dtype and value.dtype.name} has no grid of whole numbers"
    if scale is None or (has_zero and zero is None):
        return "its scales or zero points are no constants"
    axes = value.const_value.shape.numpy()
    if len(axes) != 2:
        return f"its whole numbers have {len(axes)} axes"
    shape = (axes[0], axes[1])
    numbers = scale.numpy()
    zeros = np.zeros(numbers.shape) if zero is None else zero.numpy().astype(np.float64)
    try:
        scales, zero_points = (_spread(array, node, shape) for array in (numbers, zeros))
    except ValueError:
        return f"its scales of shape {list(numbers.shape)} do not fit a weight of {list(shape)}"
    if turned:
        scales, zero_points = scales.turned, zero_points.turned
    limits, dtype, free = RANGES[value.dtype], numbers.dtype, free_scales(node.inputs[1])
    return QuantisedWeight(value, Plain(shape, turned), scales, zero_points, limits, dtype, free, turned)


def _spread(array: np.ndarray, node: ir.Node, shape: tuple[int, int]) -> Blocks:
    """A scale or zero point as a matrix of the stored shape. Raises ValueError where it does not fit."""
    if array.size == 1:
        return Blocks.of(array.reshape(()), shape)
    named, blocked = node.attributes.get("axis"), node.attributes.get("block_size")
    axis = (1 if named is None else named.as_int()) % 2
    if blocked is not None and blocked.as_int():
        block = (blocked.as_int(), 1) if axis == 0 else (1, blocked.as_int())
        return Blocks.of(array, shape, block)
    return Blocks.of(array.reshape((-1, 1) if axis == 0 else (1, -1)), shape)

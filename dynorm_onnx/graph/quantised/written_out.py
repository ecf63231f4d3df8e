"""Weights that are dequantised by arithmetic: Cast -> (Sub of zero points) -> Mul by scales -> (Reshape of blocks).

As exporters write it that know no DequantizeLinear, or none with blocks.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.quantised.grid import Blocks
from dynorm_onnx.graph.quantised.weight import RANGES, Plain, QuantisedWeight, free_scales, is_read_once, unusable
from dynorm_onnx.graph.values.constant_folding import constant_array
from dynorm_onnx.graph.values.fixed import fixed_tensor

_OPSET = 21  # of the operators that a constant operand is folded through, which mean the same in all


def written_out(mul: ir.Node, turned: bool, shape: tuple[int, ...] | None) -> QuantisedWeight | str | None:
    """What a Mul makes of whole numbers behind a Cast, in a matrix of `shape` (None: its own), or of its transpose
    where `turned`. A sentence says why that cannot be re-fitted; None: no such thing."""
    found = _scaled(mul)
    if found is None:
        return None
    value, minus, scale = found
    if (why := unusable(value, "its whole numbers")) is not None:
        return why
    assert value.const_value is not None and value.dtype is not None
    own = tuple(value.const_value.shape.numpy())
    shape = own if shape is None else shape
    scales = constant_array(scale, _OPSET)
    zeros = np.zeros(()) if minus is None else constant_array(minus, _OPSET)
    if scales is None or zeros is None:
        return "its scales or zero points are no constants"
    try:
        spread, offset = (_spread(array, own, shape) for array in (scales, zeros))
    except ValueError:
        return f"its scales of shape {list(scales.shape)} do not fit a weight of {list(own)}, read as {list(shape)}"
    if turned:
        spread, offset = spread.turned, offset.turned
    stored = fixed_tensor(scale)
    dtype = np.dtype(np.float32) if stored is None else stored.numpy().dtype
    free = free_scales(scale) if scales.size == spread.numbers.size else None  # else one scale is that of many blocks
    layout, limits = Plain((shape[0], shape[1]), turned), RANGES[value.dtype]
    return QuantisedWeight(value, layout, spread, offset, limits, dtype, free, turned)


def _scaled(mul: ir.Node) -> tuple[ir.Value, ir.Value | None, ir.Value] | None:
    """The whole numbers, what is subtracted from them, and the scales, if that is what is multiplied."""
    for place in (0, 1):
        product, scale = mul.inputs[place], mul.inputs[1 - place]
        node = product.producer() if product is not None else None
        minus = None
        if node is not None and product is not None and node.op_type == "Sub" and is_read_once(product):
            product, minus = node.inputs
            node = product.producer() if product is not None else None
        if product is None or node is None or scale is None or node.op_type != "Cast" or not is_read_once(product):
            continue
        value = node.inputs[0]
        if value is not None and value.dtype in RANGES:
            return value, minus, scale
    return None


def _spread(array: np.ndarray, own: tuple[int, ...], shape: tuple[int, ...]) -> Blocks:
    """An operand that broadcasts to the numbers' `own` shape, as the matrix that they are reshaped to. Raises
    ValueError where they are no matrix, or where that takes more than one number a block."""
    if len(shape) != 2:
        raise ValueError(f"{len(shape)} axes")
    shape = (shape[0], shape[1])
    if array.size == 1 or own == shape:
        return Blocks.of(array.reshape(()) if array.size == 1 else array, shape)
    wide = array.reshape((1,) * (len(own) - array.ndim) + array.shape)
    if len(own) == 3 and shape == (own[0], own[1] * own[2]) and wide.shape[2] == 1:  # blocks along each row
        return Blocks.of(np.broadcast_to(wide[..., 0], own[:2]), shape, (1, own[2]))
    if len(own) == 3 and shape == (own[0] * own[1], own[2]) and wide.shape[1] == 1:  # along each column
        return Blocks.of(np.broadcast_to(wide[:, 0], (own[0], own[2])), shape, (own[1], 1))
    raise ValueError(f"{array.shape} for {own}")

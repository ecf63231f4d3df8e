"""Products of whole numbers whose x is quantised where the model runs, by DynamicQuantizeLinear.

MatMulInteger -> Cast -> Mul by both scales, as onnxruntime.quantization.quantize_dynamic writes it, and what ONNX
Runtime's optimizer makes of that: MatMulIntegerToFloat and DynamicQuantizeMatMul. A layer's x is then the float input
of DynamicQuantizeLinear, and the rounding of x counts as none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.quantised.grid import Blocks
from dynorm_onnx.graph.quantised.product import QuantisedProduct
from dynorm_onnx.graph.quantised.weight import RANGES, Plain, QuantisedWeight, free_scales, is_read_once, unusable
from dynorm_onnx.graph.values.fixed import fixed_tensor


def matmul_integer(node: ir.Node) -> QuantisedProduct | str:
    """A MatMulInteger with the Cast and the Muls behind it, or why its weight cannot be re-fitted."""
    x = _quantised_here(_operand(node, 0), zero=_operand(node, 2))
    if x is None:
        return _NOT_DYNAMIC
    product, nodes, scales = node.outputs[0], [node], list[ir.Value]()
    x_scale, scaled, shared = x.outputs[1], False, False
    cast = _only_reader(product)
    if cast is None or cast.op_type != "Cast":
        return _NOT_SCALED
    nodes.append(cast)
    product = cast.outputs[0]
    while not (scaled and scales) and (mul := _only_reader(product)) is not None and mul.op_type == "Mul":
        by = mul.inputs[1] if mul.inputs[0] is product else mul.inputs[0]
        factors, inner, others_read = _factors(by)
        dynamic = [factor for factor in factors if fixed_tensor(factor) is None]
        if dynamic not in ([], [x_scale]) or (dynamic and scaled):
            break
        scaled, shared = scaled or bool(dynamic), shared or others_read
        scales += [factor for factor in factors if factor not in dynamic]
        nodes += [*inner, mul]
        product = mul.outputs[0]
    if not scaled or len(scales) > 1:
        return _NOT_SCALED
    weight = _weight(_operand(node, 1), scales[0] if scales else None, _operand(node, 3))
    if isinstance(weight, str):
        return weight
    if shared:
        weight = dataclasses.replace(weight, scales=None)
    assert x.inputs[0] is not None
    return QuantisedProduct(x.inputs[0], weight, tuple(nodes))


def matmul_integer_to_float(node: ir.Node) -> QuantisedProduct | str:
    """com.microsoft::MatMulIntegerToFloat: the numbers, then their scales, then their zero points, then a bias."""
    x = _quantised_here(_operand(node, 0), scale=_operand(node, 2), zero=_operand(node, 4))
    if x is None:
        return _NOT_DYNAMIC
    assert x.inputs[0] is not None
    return _fused(node, x.inputs[0], _weight(_operand(node, 1), _operand(node, 3), _operand(node, 5)), 6)


def dynamic_quantize_matmul(node: ir.Node) -> QuantisedProduct | str:
    """com.microsoft::DynamicQuantizeMatMul: x, the numbers, their scales and zero points, a bias."""
    assert node.inputs[0] is not None
    return _fused(node, node.inputs[0], _weight(_operand(node, 1), _operand(node, 2), _operand(node, 3)), 4)


_NOT_DYNAMIC = "its other operand is not from a DynamicQuantizeLinear"
_NOT_SCALED = "what follows is not a Cast and Muls by the scales of both operands"


def _fused(node: ir.Node, x: ir.Value, weight: QuantisedWeight | str, bias: int) -> QuantisedProduct | str:
    if isinstance(weight, str):
        return weight
    return QuantisedProduct(x, weight, (node,), None if _operand(node, bias) is None else bias)


def _weight(value: ir.Value | None, scale: ir.Value | None, zero: ir.Value | None) -> QuantisedWeight | str:
    """The weight [K, N] of whole numbers with a scale for all or for each column; scale None: 1."""
    if (why := unusable(value, "its whole numbers")) is not None:
        return why
    assert value is not None and value.const_value is not None
    if value.dtype not in RANGES or len(value.const_value.shape) != 2:
        return "its whole numbers are no matrix of 8 bits"
    tensors = [fixed_tensor(operand) for operand in (scale, zero)]
    if any(tensor is None and operand is not None for tensor, operand in zip(tensors, (scale, zero), strict=True)):
        return "its scales or zero points are no constants"
    rows, columns = value.const_value.shape.numpy()
    stored = np.ones((), np.float32) if tensors[0] is None else tensors[0].numpy()
    zeros = np.zeros(()) if tensors[1] is None else tensors[1].numpy().astype(np.float64)
    try:
        scales, zero_points = (
            Blocks.of(array.reshape((1, array.shape[-1]) if array.size > 1 else ()), (rows, columns))
            for array in (stored, zeros)
        )
    except ValueError:
        return f"its scales of shape {list(stored.shape)} do not fit a weight of {[rows, columns]}"
    layout, limits = Plain((rows, columns), transposed=False), RANGES[value.dtype]
    free = free_scales(scale)
    return QuantisedWeight(value, layout, scales, zero_points, limits, stored.dtype, free, transposed=False)


def _quantised_here(value: ir.Value | None, *, zero: ir.Value | None, scale: ir.Value | None = None) -> ir.Node | None:
    """The DynamicQuantizeLinear that a value comes from, if the scale (where one is asked for) and zero do too."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DynamicQuantizeLinear" or value is not node.outputs[0]:
        return None
    return node if zero is node.outputs[2] and scale in (None, node.outputs[1]) else None


def _factors(value: ir.Value | None) -> tuple[list[ir.Value], list[ir.Node], bool]:
    """What a factor is a product of, the Muls in the graph's order, and whether others read one of them."""
    node = value.producer() if value is not None else None
    if value is None:
        return [], [], False
    if node is None or node.op_type != "Mul":
        return [value], [], False
    parts = [_factors(operand) for operand in node.inputs]
    factors = [factor for part in parts for factor in part[0]]
    shared = not is_read_once(value) or any(part[2] for part in parts)
    return factors, [node for part in parts for node in part[1]] + [node], shared


def _only_reader(value: ir.Value) -> ir.Node | None:
    readers: Iterator[ir.Node] = iter(value.consumers())
    return next(readers, None) if is_read_once(value) else None


def _operand(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if place < len(node.inputs) else None

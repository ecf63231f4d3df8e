"""Numbers that are stored in, or rounded to, fewer bits.

Rounding has no gradient, so gradients go straight through it, and stop where a value was cut off at the end of the
range. Integers of torch cannot carry a gradient: where one is asked for, what was rounded stays a tensor of floats that
holds whole numbers. Scales and zero points are not trained.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch.nn import functional

from dynorm_onnx.pytorch.graph.operators.attention import microsoft_attention
from dynorm_onnx.pytorch.graph.operators.base import MICROSOFT, TORCH_TYPES, Node, Tensor, operator
from dynorm_onnx.pytorch.graph.operators.linear import convolved

_BITS = {ir.DataType.INT4: 4, ir.DataType.UINT4: 4, ir.DataType.INT2: 2, ir.DataType.UINT2: 2}


class _Straight(torch.autograd.Function):
    """To the nearest whole number, of two the even one; its gradient is 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


def _quantised(x: Tensor, scale: Tensor, zero: Tensor | float, ends: tuple[int, int], kind: torch.dtype) -> Tensor:
    """round(x / scale) + zero between the ends: of type `kind`, but floats where they have a gradient."""
    y = (_Straight.apply(x / scale) + zero).clamp(*ends)
    return y if y.requires_grad else y.to(kind)


def _without_zero(x: Tensor, zero: Tensor | None, kind: torch.dtype) -> Tensor:
    """Of floats, even where both are integers: of these, sums of some thousand products are exact in double."""
    wide = x.to(kind)
    return wide if zero is None else wide - zero.to(kind)


def _like_integers(y: Tensor) -> Tensor:
    return y if y.requires_grad else y.to(torch.int32)


def _range(node: Node, zero: Tensor | None) -> tuple[tuple[int, int], torch.dtype]:
    """The ends of what QuantizeLinear gives, and its torch type. An int4 is told from an int8 by the graph alone."""
    number = node.get("output_dtype", 0)
    stated = ir.DataType(number) if number else node.input_types[2] if len(node.input_types) > 2 else None
    if stated in _BITS:
        span, low = 2 ** _BITS[stated], -(2 ** (_BITS[stated] - 1)) if stated.is_signed() else 0
        return (low, low + span - 1), torch.int8 if stated.is_signed() else torch.uint8
    kind = zero.dtype if stated is None and zero is not None else TORCH_TYPES.get(stated or ir.DataType.UINT8)
    if kind is None or kind.is_floating_point:
        raise node.unsupported(f"rounding to {stated.name if stated is not None else kind}")
    return (torch.iinfo(kind).min, torch.iinfo(kind).max), kind


def _spread(node: Node, values: Tensor, x: Tensor) -> Tensor:
    """Scales or zero points, one for all of x, or one for each slice or each block of an axis."""
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    if values.ndim == 0 or values.numel() == 1:
        return values.reshape(())
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)


@operator("QuantizeLinear", domain=("", MICROSOFT))
def quantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """round(x / scale) + zero, cut off at the ends of the type's range."""
    ends, kind = _range(node, zero)
    wide = x if x.is_floating_point() else x.to(scale.dtype)
    offset = 0.0 if zero is None else _spread(node, zero.to(wide.dtype), x)
    return _quantised(wide, _spread(node, scale.detach().to(wide.dtype), x), offset, ends, kind)


@operator("DequantizeLinear", domain=("", MICROSOFT))
def dequantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(x - zero) scale, by tensor, by slices of an axis, or by blocks of one."""
    offset = None if zero is None else _spread(node, zero, x)
    return _without_zero(x, offset, scale.dtype) * _spread(node, scale.detach(), x)


@operator("DynamicQuantizeLinear")
def dynamic_quantize(node: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x in uint8, its scale and its zero point, from the least and the largest of its numbers, and 0."""
    fixed = x.detach()
    low, high = fixed.amin().clamp(max=0), fixed.amax().clamp(min=0)
    scale = torch.where(high == low, torch.ones_like(high), (high - low) / 255)
    zero = (-low / scale).round().clamp(0, 255)
    return _quantised(x, scale, zero, (0, 255), torch.uint8), scale, zero.to(torch.uint8)


def _integer_product(
    a: Tensor, b: Tensor, a_zero: Tensor | None, b_zero: Tensor | None, kind: torch.dtype = torch.float64
) -> Tensor:
    """(a - a_zero) (b - b_zero), exactly; in a's own type where it carries a gradient. A vector of zero points has one
    for each row of a or each column of b."""
    wide = a.dtype if a.is_floating_point() else kind
    if a_zero is not None and a_zero.ndim == 1 and a_zero.numel() > 1:
        a_zero = a_zero.unsqueeze(-1)
    return _without_zero(a, a_zero, wide) @ _without_zero(b, b_zero, wide)


@operator("MatMulInteger")
def matmul_integer(
    node: Node, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """The product in int32."""
    return _like_integers(_integer_product(a, b, a_zero, b_zero))


@operator("ConvInteger")
def conv_integer(
    node: Node, x: Tensor, weight: Tensor, x_zero: Tensor | None = None, weight_zero: Tensor | None = None
) -> Tensor:
    """The convolution in int32; what is padded is x's zero point."""
    wide = x.dtype if x.is_floating_point() else torch.float64
    if weight_zero is not None and weight_zero.numel() > 1:
        weight_zero = weight_zero.reshape([-1] + [1] * (weight.ndim - 1))
    return _like_integers(convolved(node, _without_zero(x, x_zero, wide), _without_zero(weight, weight_zero, wide)))


@operator("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(
    node: Node,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The product of integers, scaled; scales of b are one for all or one for each column."""
    y = _integer_product(a, b, a_zero, b_zero).to(a_scale.dtype) * (a_scale.detach() * b_scale.detach())
    return y if bias is None else y + bias


@operator("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(
    node: Node, a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """a, rounded as DynamicQuantizeLinear does, times a matrix of integers."""
    rounded, a_scale, a_zero = dynamic_quantize(node, a)
    return matmul_integer_to_float(node, rounded, b, a_scale, b_scale, a_zero, b_zero, bias)


@operator("QLinearMatMul")
def qlinear_matmul(
    node: Node, a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor,
    y_scale: Tensor, y_zero: Tensor,
) -> Tensor:  # fmt: skip
    """The product of two rounded matrices, rounded again."""
    rows = a_scale.detach().unsqueeze(-1) if a_scale.ndim == 1 and a_scale.numel() > 1 else a_scale.detach()
    y = _integer_product(a, b, a_zero, b_zero).to(a_scale.dtype) * (rows * b_scale.detach())
    return _again(y, y_scale, y_zero)


@operator("QLinearConv")
def qlinear_conv(
    node: Node, x: Tensor, x_scale: Tensor, x_zero: Tensor, weight: Tensor, weight_scale: Tensor, weight_zero: Tensor,
    y_scale: Tensor, y_zero: Tensor, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The convolution of what is rounded, with a bias in int32, rounded again."""
    y = conv_integer(node, x, weight, x_zero, weight_zero)
    channels = [-1] + [1] * (x.ndim - 2)
    y = y if bias is None else y + bias.reshape(channels)
    scale = x_scale.detach() * weight_scale.detach()
    return _again(y.to(x_scale.dtype) * (scale.reshape(channels) if scale.numel() > 1 else scale), y_scale, y_zero)


@operator("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def qlinear_binary(
    node: Node, a: Tensor, a_scale: Tensor, a_zero: Tensor | None, b: Tensor, b_scale: Tensor, b_zero: Tensor | None,
    y_scale: Tensor, y_zero: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Of what is rounded, rounded again."""
    left = _without_zero(a, a_zero, a_scale.dtype) * a_scale.detach()
    right = _without_zero(b, b_zero, b_scale.dtype) * b_scale.detach()
    kind = next((t.dtype for t in (y_zero, a, b) if t is not None and not t.is_floating_point()), torch.uint8)
    y = left + right if node.op_type == "QLinearAdd" else left * right
    return _again(y, y_scale, torch.zeros((), dtype=kind) if y_zero is None else y_zero)


def _again(y: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    limits = torch.iinfo(zero.dtype)
    return _quantised(y, scale.detach(), zero.to(y.dtype), (limits.min, limits.max), zero.dtype)


@operator("QAttention", domain=MICROSOFT)
def quantised_attention(
    node: Node,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    mask: Tensor | None = None,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
    past: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention with the projection of q, k and v as a product of integers."""
    tokens = _without_zero(x, x_zero, x_scale.dtype) * x_scale.detach()
    matrix = _without_zero(weight, weight_zero, weight_scale.dtype) * weight_scale.detach()
    return microsoft_attention(node, tokens, matrix, bias, mask, past)


@operator("MatMulNBits", domain=MICROSOFT)
def matmul_nbits(
    node: Node,
    a: Tensor,
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    group: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """a times the transpose of dequantised weights [N, K], which are not trained."""
    weight = _dequantised(node, packed, scales.detach(), zero_points, group).to(a.dtype)
    return functional.linear(a, weight, bias)


def _dequantised(
    node: Node, packed: Tensor, scales: Tensor, zero_points: Tensor | None, group: Tensor | None
) -> Tensor:
    """[N, K] from blocks [N, blocks, bytes], the first element in the lowest bits."""
    n, k, bits, block = node.get("N"), node.get("K"), node.get("bits", 4), node.get("block_size")
    blocks = -(-k // block)
    values = _unpacked(packed.reshape(n, blocks, -1), bits)[..., :block].to(scales.dtype)
    scale = scales.reshape(n, blocks, 1)
    zero: Tensor | float = float(2 ** (bits - 1))
    if zero_points is not None and zero_points.dtype == torch.uint8:
        zero = _unpacked(zero_points.reshape(n, -1), bits)[:, :blocks, None].to(scales.dtype)
    elif zero_points is not None:
        zero = zero_points.detach().reshape(n, blocks, 1)
    if group is None:
        return ((values - zero) * scale).reshape(n, -1)[:, :k]
    places = group.long()
    of_zero = zero[:, places, 0] if isinstance(zero, Tensor) else zero
    return (values.reshape(n, -1)[:, :k] - of_zero) * scale[:, places, 0]


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """Each byte of the last axis as its 8 / bits numbers."""
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)


@operator("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(
    node: Node, packed: Tensor, indices: Tensor, scales: Tensor, zero_points: Tensor | None = None
) -> Tensor:
    """Rows of an int4 table, quantised in blocks along its last axis; not trained."""
    if node.get("gather_axis", 0) != 0 or node.get("quantize_axis", 1) % packed.ndim != packed.ndim - 1:
        raise node.unsupported("another gather_axis than 0, or another quantize_axis than the last")
    if packed.dtype != torch.int8:  # what an int4 tensor becomes in torch
        raise node.unsupported("a table of another type than int4")
    rows, block, kind = indices.long() % packed.shape[0], node.get("block_size", 128), scales.dtype

    def spread(values: Tensor) -> Tensor:
        return values[rows].to(kind).repeat_interleave(block, -1)[..., : packed.shape[-1]]

    offset = packed[rows].to(kind)
    return (offset if zero_points is None else offset - spread(zero_points)) * spread(scales.detach())

"""Products with matrices, convolutions, and weights that are stored quantised."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from dynorm_onnx.pytorch.graph.operators.base import MICROSOFT, Node, Tensor, operator


@operator("MatMul")
def matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """As numpy's."""
    return torch.matmul(a, b)


@operator("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """alpha times the product, each operand transposed in its last two axes where the attributes say so."""
    left, right = _arranged(node, a, "A"), _arranged(node, b, "B")
    y = torch.matmul(left, right)
    alpha = node.get("alpha", 1.0)
    return y if alpha == 1 else alpha * y


def _arranged(node: Node, x: Tensor, which: str) -> Tensor:
    """`transBatch` moves the first axis behind the others of the batch, before `trans` swaps the last two."""
    if node.get(f"transBatch{which}", 0):
        x = x.movedim(0, -2)
    return x.mT if node.get(f"trans{which}", 0) and x.ndim > 1 else x


@operator("Gemm")
def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha A B + beta C, A and B transposed on demand."""
    left = a.mT if node.get("transA", 0) else a
    right = b.mT if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    y = left @ right
    y = y if alpha == 1 else alpha * y
    return y if c is None or beta == 0 else y + (c if beta == 1 else beta * c)


@operator("Einsum")
def einsum(node: Node, *inputs: Tensor) -> Tensor:
    """By the equation, in torch's spelling the same."""
    return torch.einsum(node.get("equation"), *inputs)


_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@operator("Conv")
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One to three axes in space; unequal pads are put on before."""
    axes = weight.ndim - 2
    if axes not in _CONVOLUTIONS:
        raise node.unsupported(f"a convolution over {axes} axes")
    strides, dilations = (node.get(name) or [1] * axes for name in ("strides", "dilations"))
    pads = node.get("pads") or [0] * (2 * axes)
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        pads = _same_pads(node, x, weight, strides, dilations)
    x = functional.pad(x, [n for axis in reversed(range(axes)) for n in (pads[axis], pads[axis + axes])])
    return _CONVOLUTIONS[axes](x, weight, bias, stride=strides, dilation=dilations, groups=node.get("group", 1))


def _same_pads(node: Node, x: Tensor, weight: Tensor, strides: list[int], dilations: list[int]) -> list[int]:
    """Pads that make the output as long as the input divided by the stride; the odd one by SAME_UPPER last."""
    first, last = [], []
    for axis, (stride, dilation) in enumerate(zip(strides, dilations, strict=True)):
        length, span = x.shape[2 + axis], dilation * (weight.shape[2 + axis] - 1) + 1
        total = max((math.ceil(length / stride) - 1) * stride + span - length, 0)
        small, large = total // 2, total - total // 2
        first.append(small if node.get("auto_pad") == "SAME_UPPER" else large)
        last.append(large if node.get("auto_pad") == "SAME_UPPER" else small)
    return first + last


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


@operator("DequantizeLinear", domain=("", MICROSOFT))
def dequantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(x - zero) scale, by tensor, by slices of an axis, or by blocks of one; not trained."""
    scale = scale.detach()
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    kind = scale.dtype

    def spread(values: Tensor) -> Tensor:
        if values.ndim == 0 or values.numel() == 1:
            return values.reshape(())
        if block:
            return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
        shape = [1] * x.ndim
        shape[axis] = -1
        return values.reshape(shape)

    offset = x.to(kind) if zero is None else x.to(kind) - spread(zero.to(kind))
    return offset * spread(scale)

"""Products with matrices and convolutions."""

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


@operator("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(node: Node, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """The gelu by tanh of a b + bias."""
    y = a @ b
    return functional.gelu(y if bias is None else y + bias, approximate="tanh")


@operator("Einsum")
def einsum(node: Node, *inputs: Tensor) -> Tensor:
    """By the equation, in torch's spelling the same."""
    return torch.einsum(node.get("equation"), *inputs)


_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@operator("Conv")
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One to three axes in space."""
    return convolved(node, x, weight, bias)


def convolved(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """By the attributes of a Conv; unequal pads are put on before."""
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


@operator("ConvTranspose")
def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One to three axes in space: the whole result, of which the pads are then cut off."""
    axes = weight.ndim - 2
    if axes not in _TRANSPOSED or node.get("output_shape") or node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise node.unsupported(f"a transposed convolution over {axes} axes, or with output_shape or auto_pad,")
    strides, dilations = (node.get(name) or [1] * axes for name in ("strides", "dilations"))
    pads, more = node.get("pads") or [0] * (2 * axes), node.get("output_padding") or [0] * axes
    y = _TRANSPOSED[axes](x, weight, None, stride=strides, dilation=dilations, groups=node.get("group", 1))
    ends = [(-pads[axis], more[axis] - pads[axis + axes]) for axis in range(axes)]
    y = functional.pad(y, [n for pair in reversed(ends) for n in pair])
    return y if bias is None else y + bias.reshape([-1] + [1] * axes)

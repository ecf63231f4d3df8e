"""Pools over windows and over all of space, and moves between space and channels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from dynorm_onnx.pytorch.graph.operators.base import Node, Tensor, operator


def _windows(node: Node, x: Tensor, fill: float) -> Tensor:
    """x [N, C, ...] as windows [N, C, places along each axis, positions in a window], `fill` where there is nothing."""
    kernel = node.get("kernel_shape")
    axes = len(kernel)
    strides, dilations = (node.get(name) or [1] * axes for name in ("strides", "dilations"))
    for axis, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        length, span = x.shape[2 + axis], dilation * (size - 1) + 1
        first, places = _placed(node, axis, length, span, stride)
        last = (places - 1) * stride + span - length - first
        x = functional.pad(x, [0, 0] * (x.ndim - 3 - axis) + [first, max(last, 0)], value=fill)
        at = torch.arange(places, device=x.device)[:, None] * stride
        at = at + dilation * torch.arange(size, device=x.device)
        taken = x.index_select(2 + axis, at.reshape(-1))
        x = taken.unflatten(2 + axis, (places, size)).movedim(3 + axis, -1)
    return x.flatten(-axes)


def _placed(node: Node, axis: int, length: int, span: int, stride: int) -> tuple[int, int]:
    """How much is put in front of an axis, and at how many places a window stands then."""
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        places = math.ceil(length / stride)
        total = max((places - 1) * stride + span - length, 0)
        return (total // 2 if auto == "SAME_UPPER" else total - total // 2), places
    pads = node.get("pads") if auto == "NOTSET" else None
    count = len(node.get("kernel_shape"))
    first, last = (pads[axis], pads[axis + count]) if pads else (0, 0)
    room = length + first + last - span
    if not node.get("ceil_mode", 0):
        return first, room // stride + 1
    places = math.ceil(room / stride) + 1
    return first, places - 1 if (places - 1) * stride >= length + first else places  # none begins in the padding


@operator("MaxPool")
def max_pool(node: Node, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """The largest of each window, and where it is in the flattened x."""
    whole = not x.is_floating_point()
    least = float(torch.iinfo(x.dtype).min) if whole else -math.inf
    values, places = _windows(node, x, least).max(-1)
    if node.outputs == 1:
        return values
    if node.get("storage_order", 0):
        raise node.unsupported("storage_order")
    flat = torch.arange(x.numel(), dtype=torch.float64, device=x.device).reshape(x.shape)
    origin = _windows(node, flat, -1.0)
    return values, origin.gather(-1, places.unsqueeze(-1)).squeeze(-1).long()


@operator("AveragePool")
def average_pool(node: Node, x: Tensor) -> Tensor:
    """The mean of each window; what was padded counts with count_include_pad, what lies behind the padding never."""
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if node.get("count_include_pad", 0) and node.get("pads"):
        axes = len(node.get("kernel_shape"))
        pads = node.get("pads")
        around = [n for axis in reversed(range(axes)) for n in (pads[axis], pads[axis + axes])]
        ones = _with_counted_padding(node, ones, around)
    else:
        ones = _windows(node, ones, 0.0)
    return _windows(node, x, 0.0).sum(-1) / ones.sum(-1)


def _with_counted_padding(node: Node, ones: Tensor, around: list[int]) -> Tensor:
    inner = {**node.attributes, "pads": [0] * len(around)}
    padded = functional.pad(ones, around, value=1.0)
    counted = Node(node.name, node.domain, node.op_type, node.opset, inner, node.outputs)
    return _windows(counted, padded, 0.0)


_OVER_SPACE: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "GlobalMaxPool": lambda x, axes: x.amax(axes, keepdim=True),
    "GlobalAveragePool": lambda x, axes: x.mean(axes, keepdim=True),
}


@operator(*_OVER_SPACE)
def global_pool(node: Node, x: Tensor) -> Tensor:
    """Over all axes behind the channels."""
    return _OVER_SPACE[node.op_type](x, tuple(range(2, x.ndim)))


@operator("DepthToSpace")
def depth_to_space(node: Node, x: Tensor) -> Tensor:
    """Channels become blocks of b x b places."""
    n, c, h, w = x.shape
    b = node.get("blocksize")
    if node.get("mode", "DCR") == "DCR":
        return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
    return functional.pixel_shuffle(x, b)


@operator("SpaceToDepth")
def space_to_depth(node: Node, x: Tensor) -> Tensor:
    """The other way."""
    n, c, h, w = x.shape
    b = node.get("blocksize")
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)

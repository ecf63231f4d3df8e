"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dynorm_onnx.pytorch.graph.operators.base import Node, Tensor, axes_of, operator

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return x.double().mean(axes, keepdim=keep).to(x.dtype)


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: _sum(x * x, axes, keep).sqrt(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: _sum(x, axes, keep).log(),
}


@operator(*_REDUCTIONS, host=(1,))
def reduce(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Over the axes given by input or attribute, or over all of them (or none: `noop_with_empty_axes`)."""
    wanted = axes_of(node, axes)
    if not wanted:
        if node.get("noop_with_empty_axes", 0):
            return x
        wanted = list(range(x.ndim))
    return _REDUCTIONS[node.op_type](x, tuple(wanted), bool(node.get("keepdims", 1)))

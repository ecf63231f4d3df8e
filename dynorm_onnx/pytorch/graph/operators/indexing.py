"""Reading and writing elements by index."""

from __future__ import annotations

import torch
from torch.nn import functional

from dynorm_onnx.pytorch.graph.operators.base import Node, Tensor, operator

_SCATTER_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _counted_from_zero(indices: Tensor, size: int) -> Tensor:
    """int64 indices, negative ones counted from the end."""
    wide = indices.long()
    return torch.where(wide < 0, wide + size, wide)


@operator("Gather")
def gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """Slices of one axis; of a matrix's rows, as an embedding."""
    axis = node.get("axis", 0) % x.ndim
    places = _counted_from_zero(indices, x.shape[axis])
    if x.ndim == 2 and axis == 0:
        return functional.embedding(places, x)
    taken = x.index_select(axis, places.reshape(-1))
    return taken.reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])


@operator("GatherElements")
def gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """One element for each index, along one axis."""
    axis = node.get("axis", 0)
    return torch.gather(x, axis, _counted_from_zero(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """Slices at the positions in the last axis of `indices`, behind `batch_dims` common axes."""
    shared = node.get("batch_dims", 0)
    columns = [_counted_from_zero(column, x.shape[shared + i]) for i, column in enumerate(indices.unbind(-1))]
    batches = []
    for axis in range(shared):
        shape = [1] * columns[0].ndim
        shape[axis] = x.shape[axis]
        batches.append(torch.arange(x.shape[axis], device=x.device).reshape(shape))
    return x[(*batches, *columns)]


@operator("ScatterElements", "Scatter")
def scatter_elements(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """x with one element overwritten (or added to, ...) for each index."""
    axis = node.get("axis", 0)
    places = _counted_from_zero(indices, x.shape[axis])
    reduction = node.get("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _SCATTER_REDUCTIONS[reduction])


@operator("ScatterND")
def scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """x with slices overwritten, or added to, at the positions in the last axis of `indices`."""
    places = tuple(_counted_from_zero(column, x.shape[i]) for i, column in enumerate(indices.unbind(-1)))
    reduction = node.get("reduction", "none")
    if reduction not in ("none", "add"):
        raise node.unsupported(f"the reduction {reduction!r}")
    return x.index_put(places, updates, accumulate=reduction == "add")


@operator("OneHot", host=(1,))
def one_hot(node: Node, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """values[1] at each index of a new axis, values[0] elsewhere."""
    count = int(depth.item())
    axis = node.get("axis", -1)
    places = _counted_from_zero(indices, count)
    shape = [1] * (indices.ndim + 1)
    axis %= indices.ndim + 1
    shape[axis] = count
    hot = places.unsqueeze(axis) == torch.arange(count, device=places.device).reshape(shape)
    return torch.where(hot, values[1], values[0])


@operator("NonZero")
def non_zero(node: Node, x: Tensor) -> Tensor:
    """The places [rank, count] of what is not zero."""
    return torch.nonzero(x).T


@operator("TopK", host=(1,))
def top_k(node: Node, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest (or smallest) along an axis, and where they are."""
    count = int(k.item()) if k is not None else node.get("k")
    found = torch.topk(x, count, node.get("axis", -1), bool(node.get("largest", 1)), bool(node.get("sorted", 1)))
    return found.values, found.indices


@operator("ArgMax", "ArgMin")
def arg_extreme(node: Node, x: Tensor) -> Tensor:
    """Where the extreme along an axis is, the first of equals or with `select_last_index` the last."""
    function = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
    if not node.get("select_last_index", 0):
        return function(x, axis, keepdim=keep)
    return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)

"""Shapes, and moving elements about."""

from __future__ import annotations

import torch
from torch.nn import functional

from dynorm_onnx.pytorch.graph.operators.base import Node, Tensor, axes_of, numbers, operator


@operator("Constant")
def constant(node: Node) -> Tensor:
    """The one attribute, whichever of the spellings it has."""
    value = next(iter(node.attributes.values()))
    if isinstance(value, Tensor):
        return value
    is_float = isinstance(value, float) or (isinstance(value, tuple) and any(isinstance(v, float) for v in value))
    return torch.tensor(value, dtype=(node.float_type or torch.float32) if is_float else torch.int64)


@operator("ConstantOfShape", host=(0,))
def constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    """One value, float zero unless said."""
    value = node.get("value")
    if value is None:
        return torch.zeros(numbers(shape), dtype=node.float_type or torch.float32)
    return value.reshape(()).expand(numbers(shape)).clone()


@operator("Identity")
def identity(node: Node, x: Tensor) -> Tensor:
    """x itself."""
    return x


@operator("Dropout")
def dropout(node: Node, x: Tensor, *_: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    """The identity: a file is there to infer with."""
    return x if node.outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))


@operator("Cast")
def cast(node: Node, x: Tensor) -> Tensor:
    """To a type by number."""
    return x.to(node.dtype(node.get("to")))


@operator("CastLike")
def cast_like(node: Node, x: Tensor, like: Tensor) -> Tensor:
    """To the type of another tensor."""
    return x.to(like.dtype)


@operator("Shape")
def shape(node: Node, x: Tensor) -> Tensor:
    """The sizes from `start` to `end`, int64 on the CPU."""
    return torch.tensor(list(x.shape)[node.get("start", 0) : node.get("end")], dtype=torch.int64)


@operator("Size")
def size(node: Node, x: Tensor) -> Tensor:
    """The number of elements, int64 on the CPU."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("Reshape", host=(1,))
def reshape(node: Node, x: Tensor, to: Tensor | None = None) -> Tensor:
    """A 0 keeps the size at its place, unless `allowzero`; the shape is an attribute before opset 5."""
    sizes = numbers(to) if to is not None else list(node.get("shape"))
    if not node.get("allowzero", 0):
        sizes = [x.shape[place] if n == 0 else n for place, n in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(node: Node, x: Tensor) -> Tensor:
    """Two axes: those before `axis` and those from it on."""
    axis = node.get("axis", 1)
    rows = 1
    for n in x.shape[: axis if axis >= 0 else axis + x.ndim]:
        rows *= n
    return x.reshape(rows, x.numel() // rows if rows else -1)


@operator("Transpose")
def transpose(node: Node, x: Tensor) -> Tensor:
    """By `perm`, or all axes reversed."""
    return x.permute(node.get("perm") or tuple(reversed(range(x.ndim))))


@operator("Squeeze", host=(1,))
def squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """The axes named, or all of size one."""
    wanted = axes_of(node, axes)
    return x.squeeze() if wanted is None else x.squeeze(tuple(wanted))


@operator("Unsqueeze", host=(1,))
def unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """New axes, counted in the result."""
    wanted = axes_of(node, axes) or []
    for axis in sorted(axis % (x.ndim + len(wanted)) for axis in wanted):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(node: Node, *inputs: Tensor) -> Tensor:
    """Along one axis."""
    return torch.cat(inputs, node.get("axis", 1))


@operator("Split", host=(1,))
def split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """In pieces of the sizes given, or in as many as there are outputs, the last one smaller if need be."""
    axis = node.get("axis", 0)
    given = axes_of(node, sizes, "split")
    if given is not None:
        return torch.split(x, given, axis)
    return torch.split(x, -(-x.shape[axis] // node.get("num_outputs", node.outputs)), axis)


@operator("Slice", host=(1, 2, 3, 4))
def slice_(
    node: Node,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Of some axes; negative steps run backwards. All are attributes before opset 10."""
    first, last = axes_of(node, starts, "starts") or [], axes_of(node, ends, "ends") or []
    along = axes_of(node, axes)
    strides = numbers(steps) if steps is not None else [1] * len(first)
    for axis, start, end, step in zip(along or range(len(first)), first, last, strides, strict=False):
        span = range(x.shape[axis])[slice(start, end if step > 0 or end >= -x.shape[axis] else None, step)]
        if step == 1:
            x = x.narrow(axis, span.start, len(span))
        else:
            x = x.index_select(axis, torch.tensor(list(span), dtype=torch.int64, device=x.device))
    return x


@operator("Expand", host=(1,))
def expand(node: Node, x: Tensor, to: Tensor) -> Tensor:
    """To the common shape of x's own and the one given."""
    return x.expand(torch.broadcast_shapes(x.shape, numbers(to)))


@operator("Tile", host=(1,))
def tile(node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    """Each axis repeated."""
    return x.repeat(numbers(repeats))


@operator("Range", host=(0, 1, 2))
def range_(node: Node, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    """From start to before limit."""
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


@operator("Trilu", host=(1,))
def trilu(node: Node, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    """One triangle of the last two axes, zeros elsewhere."""
    k = int(diagonal.item()) if diagonal is not None else 0
    return torch.triu(x, k) if node.get("upper", 1) else torch.tril(x, k)


@operator("EyeLike")
def eye_like(node: Node, x: Tensor) -> Tensor:
    """Ones on a diagonal of a matrix like x."""
    kind = node.dtype(node.get("dtype")) if node.get("dtype") is not None else x.dtype
    rows, columns = x.shape
    places = torch.arange(columns, device=x.device) - torch.arange(rows, device=x.device)[:, None]
    return (places == node.get("k", 0)).to(kind)


@operator("Pad", host=(1, 3))
def pad(
    node: Node, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Constant, reflected or the edge's values; negative pads crop."""
    amounts = axes_of(node, pads, "pads") or []
    along = numbers(axes) if axes is not None else list(range(x.ndim))
    mode = node.get("mode", "constant")
    before, after = [0] * x.ndim, [0] * x.ndim
    for place, axis in enumerate(along):
        before[axis], after[axis] = amounts[place], amounts[place + len(along)]
    if mode == "constant":
        fill = node.get("value", 0.0) if value is None else value.item()
        return functional.pad(
            x, [n for axis in reversed(range(x.ndim)) for n in (before[axis], after[axis])], value=fill
        )
    for axis in range(x.ndim):
        if before[axis] or after[axis]:
            x = x.index_select(axis, _padded_places(node, x.shape[axis], before[axis], after[axis]).to(x.device))
    return x


def _padded_places(node: Node, length: int, before: int, after: int) -> Tensor:
    """Where each element of a padded axis comes from."""
    places = torch.arange(-before, length + after)
    mode = node.get("mode")
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    if mode != "reflect":
        raise node.unsupported(f"the mode {mode!r}")
    period = max(2 * (length - 1), 1)
    places = places.abs() % period
    return torch.minimum(places, period - places)

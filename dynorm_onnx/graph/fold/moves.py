"""Nodes that add up, convert or move rows of channels and leave the channels as they are.

A mean over channels goes through them: what they give out has mean zero wherever what they read has. Axes
are negative, counted from the end.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from dynorm_onnx.graph.values.fixed import fixed_tensor

_ELEMENTWISE = frozenset({"Add", "Sub"})
_SCALED = frozenset({"Mul", "Div"})
_RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
_ALIKE = frozenset({"Identity", "Cast", "Dropout", "Expand"})
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def rows_read(node: ir.Node) -> tuple[int, ...]:
    """The inputs whose rows the node passes on; none for a node that does anything else with them."""
    if node.domain != "":
        return ()
    if node.op_type in _ELEMENTWISE:
        return (0, 1)
    if node.op_type == "Concat":
        return tuple(range(len(node.inputs)))
    if node.op_type == "Mul":
        return next(((i,) for i in (0, 1) if _is_scalar(node.inputs[1 - i])), ())
    if node.op_type == "Div":
        return (0,) if _is_scalar(node.inputs[1]) else ()
    if node.op_type == "Cast":
        return (0,) if ir.DataType(node.attributes["to"].as_int()) in _FLOATS else ()
    if node.op_type in _RESHAPING | _ALIKE | {"Transpose", "Gather", "Slice"}:
        return (0,)
    return ()


def axis_after(node: ir.Node, position: int, axis: int, channels: int) -> int | None:
    """The axis of the first output that is `axis` of an input of rows_read(); None where it is not kept."""
    return _moved(node, position, axis, channels, forward=True)


def axis_before(node: ir.Node, position: int, axis: int, channels: int) -> int | None:
    """The axis of an input of rows_read() that is `axis` of the first output; None where it is not kept."""
    return _moved(node, position, axis, channels, forward=False)


def size_at(value: ir.Value, axis: int) -> int | None:
    """The size of an axis where the model says it."""
    if value.shape is None or len(value.shape) < -axis:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def _moved(node: ir.Node, position: int, axis: int, channels: int, *, forward: bool) -> int | None:
    x, y = node.inputs[position], node.outputs[0]
    assert x is not None
    if node.op_type in _ELEMENTWISE | _SCALED | _ALIKE:
        return axis
    if node.op_type == "Transpose":
        return _transposed(node, axis, forward=forward)
    if node.op_type in _RESHAPING:
        return _reshaped(*((x, y) if forward else (y, x)), axis, channels)
    return axis if _leaves(node, x, axis) else None


def _transposed(node: ir.Node, axis: int, *, forward: bool) -> int | None:
    attribute = node.attributes.get("perm")
    if attribute is None:
        return None
    order = list(attribute.as_ints())
    place = axis % len(order)
    return (order.index(place) if forward else order[place]) - len(order)


def _reshaped(source: ir.Value, target: ir.Value, axis: int, channels: int) -> int | None:
    """Rows stay rows where both have the channels last; channels further in need all before them to stay."""
    if source.shape is None or target.shape is None:
        return None
    if axis == -1:
        return -1 if source.shape[-1:] == (channels,) and target.shape[-1:] == (channels,) else None
    place = axis + len(source.shape)
    if len(target.shape) <= place:
        return None
    pairs = zip(source.shape[: place + 1], target.shape[: place + 1], strict=True)
    return place - len(target.shape) if all(_same(one, other) for one, other in pairs) else None


def _same(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    if isinstance(one, int) or isinstance(other, int):
        return one == other
    return one.value is not None and one.value == other.value


def _leaves(node: ir.Node, x: ir.Value, axis: int) -> bool:
    """Whether Gather, Slice or Concat work on another axis, in front of the channels."""
    if x.shape is None:
        return False
    axes = _axes_of_work(node)
    rank = len(x.shape)
    return axes is not None and all(at % rank < axis % rank for at in axes)


def _axes_of_work(node: ir.Node) -> list[int] | None:
    if node.op_type in ("Gather", "Concat"):
        attribute = node.attributes.get("axis")
        return [attribute.as_int() if attribute is not None else 0]
    if len(node.inputs) < 2:  # Slice before opset 10
        attribute = node.attributes.get("axes")
        return list(attribute.as_ints()) if attribute is not None else None
    given = node.inputs[3] if len(node.inputs) > 3 else None
    if given is not None:
        tensor = fixed_tensor(given)
        return None if tensor is None else [int(at) for at in tensor.numpy().reshape(-1)]
    starts = node.inputs[1]
    count = starts.shape[0] if starts is not None and starts.shape is not None and len(starts.shape) == 1 else None
    return list(range(count)) if isinstance(count, int) else None


def _is_scalar(value: ir.Value | None) -> bool:
    """Whether a value is known to have one element, which multiplies all channels alike."""
    if value is None or value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return False
    return math.prod(int(size) for size in value.shape if isinstance(size, int)) == 1

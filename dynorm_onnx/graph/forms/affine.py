"""Weight and bias: which values may be one, and how far behind the normalised value they reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir

from dynorm_onnx.graph.norm_site import Kind
from dynorm_onnx.graph.values.index import GraphIndex, Shape
from dynorm_onnx.graph.values.node_kinds import is_op

# What stands between a weight given as a graph input and its use.
_PREPARATIONS = {"Cast", "Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten"}
_PREPARATIONS |= {"DequantizeLinear", "Add", "Mul"}  # (1 + w); the other operand is a constant


@dataclasses.dataclass(frozen=True)
class Normalised:
    """A value read as x̂ * weight + bias, x̂ = (x or x - mean) / sqrt(variance + epsilon)."""

    kind: Kind
    epsilon: float
    weight: ir.Value | None
    bias: ir.Value | None


def is_parameter(index: GraphIndex, value: ir.Value) -> bool:
    """Whether a value can be a weight or bias: a constant, or a graph input but for its preparation."""
    if index.is_constant(value):
        return True
    return graph_input_behind(index, value) is not None


def graph_input_behind(index: GraphIndex, value: ir.Value) -> ir.Value | None:
    """The graph input that a value is, up to a few operators with otherwise constant operands."""
    for _ in range(6):
        if value.is_graph_input():
            return value
        node = value.producer()
        if node is None or node not in index or not is_op(node, *_PREPARATIONS):
            return None
        varying = [i for i in node.inputs if i is not None and not index.is_constant(i)]
        if len(varying) != 1:
            return None
        value = varying[0]
    return None


def enlarges(shape: Shape, onto: Shape) -> bool:
    """Whether a product with a tensor of this shape is certainly larger than `onto`."""
    padded = (1,) * (len(shape) - len(onto)) + onto
    longer = len(shape) > len(onto)
    return longer or any(
        s is not None and s > 1 and d == 1 for s, d in zip(shape, padded[len(padded) - len(shape) :], strict=True)
    )


def misfits(shape: Shape, onto: Shape) -> bool:
    """Whether a tensor of this shape certainly cannot be stretched to one of shape `onto`."""
    pairs = zip(reversed(shape), reversed(onto), strict=False)
    return any(s != d and s != 1 and None not in (s, d) for s, d in pairs)


def spelled(shape: Shape) -> str:
    """A shape for a sentence."""
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"


def why_not_weight(index: GraphIndex, value: ir.Value, x: ir.Value, axes: tuple[int, ...]) -> str | None:
    """Why a parameter is not a weight of the norm of x; None if it is one.

    A constant weight may also vary over other axes ([groups, size]); a graph input may not, since it
    could be an activation.
    """
    shape, onto = index.shape(value), index.shape(x)
    constant = index.is_constant(value)
    if not constant:
        source = graph_input_behind(index, value)
        if shape is None or source is None or index.depends_on(x, source):
            return "its weight depends on the model's inputs"
    if shape is None:
        return None
    if onto is not None and enlarges(shape, onto):
        return f"its weight of shape {spelled(shape)} enlarges the input of shape {spelled(onto)}"
    if onto is not None and misfits(shape, onto):
        return f"its weight of shape {spelled(shape)} does not fit the input of shape {spelled(onto)}"
    for axis in range(-1, -len(shape) - 1, -1):
        if shape[axis] == 1 or axis in axes:
            continue
        same = onto is not None and onto[axis] == shape[axis] is not None
        if not (constant and same and any(shape[a] != 1 for a in axes if -a <= len(shape))):
            return f"its weight of shape {spelled(shape)} varies over other axes than it normalises"
    return None


def why_not_bias(index: GraphIndex, value: ir.Value, x: ir.Value, axes: tuple[int, ...]) -> str | None:
    """Why a parameter is not a bias: as for weights, and it varies over the normalised axes only.

    Otherwise a position embedding that is added to a norm's output would look like one.
    """
    reason = why_not_weight(index, value, x, axes)
    shape = index.shape(value)
    if reason is None and shape is not None:
        outside = [shape[a] for a in range(-1, -len(shape) - 1, -1) if a not in axes]
        if any(d != 1 for d in outside):
            return f"its bias of shape {spelled(shape)} varies over other axes than it normalises"
    return reason


def extend(
    index: GraphIndex,
    x: ir.Value,
    first: ir.Value,
    read: Callable[[ir.Value], Normalised | None],
) -> ir.Value:
    """The last value that is still the norm's result: behind weight, bias and the Cast back.

    Stops before a value that is not the norm's any more, and at one that somebody else needs. A Cast
    belongs to the norm if it gives back the type of x, or if weight or bias follow behind it.
    """
    y = last = first
    while not index.is_output(last):
        readers = index.consumers(last)
        if len(readers) != 1 or readers[0] not in index or read(readers[0].outputs[0]) is None:
            break
        last = readers[0].outputs[0]
        back = index.dtype(x) in (index.dtype(last), None)
        if not is_op(readers[0], "Cast", "CastLike") or back:
            y = last
    return y

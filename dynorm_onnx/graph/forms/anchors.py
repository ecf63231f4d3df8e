"""Where a norm may be: the reductions of a square."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import onnx_ir as ir

from dynorm_onnx.graph.forms.operators import reduced_axes, written_axes
from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import is_op
from dynorm_onnx.graph.values.small_constants import integer

MORE_AXES = 3  # places of a volume


@dataclasses.dataclass(frozen=True)
class Anchor:
    """A reduction of `squared` ** 2 over `axes` (as operators.reduced_axes gives them).

    `rank` is that of `squared`, where it was assumed.
    """

    node: ir.Node
    squared: ir.Value
    axes: tuple[int, ...] | None
    rank: int | None = None


def anchors(index: GraphIndex) -> Iterator[Anchor]:
    """All live reductions of a square, in graph order."""
    for node in index.nodes:
        squared = _squared_operand(index, node)
        if squared is not None and any(index.consumers(o) or index.is_output(o) for o in node.outputs):
            yield Anchor(node, index.peel(squared), reduced_axes(index, node))


def at_ranks_that_fit(index: GraphIndex, anchor: Anchor) -> Iterator[Anchor]:
    """A reduction over positive axes of what has no known rank, at the ranks that it can have in a norm: what is
    normalised are the last axes, or up to MORE_AXES follow them (channels first)."""
    axes = written_axes(index, anchor.node)
    if anchor.axes is not None or not axes or min(axes) < 0 or index.rank(anchor.node.inputs[0]) is not None:
        return
    for rank in range(max(axes) + 1, max(axes) + 2 + MORE_AXES):
        yield Anchor(anchor.node, anchor.squared, reduced_axes(index, anchor.node, rank), rank)


def _squared_operand(index: GraphIndex, node: ir.Node) -> ir.Value | None:
    if is_op(node, "ReduceSumSquare", "ReduceL2"):
        return node.inputs[0]
    if is_op(node, "LpNormalization") and integer(node, "p", 2) == 2:
        return node.inputs[0]
    if not is_op(node, "ReduceMean", "ReduceSum") or node.inputs[0] is None:
        return None
    square = index.peel(node.inputs[0]).producer()
    if square is None or square.inputs[0] is None:
        return None
    if is_op(square, "Pow") and math.isclose(index.scalar(square.inputs[1]) or 0, 2, rel_tol=1e-6):
        return square.inputs[0]
    if is_op(square, "Mul") and square.inputs[1] is not None:
        return square.inputs[0] if index.same(square.inputs[0], square.inputs[1]) else None
    return None


def roots(index: GraphIndex, anchor: Anchor) -> list[ir.Value]:
    """What may be the norm's x: what is squared, or, if that is a difference, what it is taken from."""
    node = anchor.squared.producer()
    if not is_op(node, "Sub", "Add") or node is None:
        return [anchor.squared]
    operands = [index.peel(i) for i in node.inputs if i is not None and index.scalar(i) is None]
    return [*operands, anchor.squared]

"""Which values have sizes that follow from other values: as many rows as a predicted duration says, as a comparison
leaves, as an expert was given. Where norms are replaced such sizes change, and rows cannot be paired by position."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from dynorm_onnx.graph.values.reads import bodies_of, inputs_of

SIZED_BY: dict[str, tuple[int, ...]] = {
    "NonZero": (0,), "Compress": (1,), "Unique": (0,), "NonMaxSuppression": (0, 1), "Range": (0, 1, 2),
    "Expand": (1,), "Reshape": (1,), "ConstantOfShape": (0,), "Tile": (1,), "Resize": (1, 2, 3), "Upsample": (1,),
    "Slice": (1, 2, 3, 4), "Pad": (1, 3), "Split": (1,), "TopK": (1,), "OneHot": (1,), "CenterCropPad": (1,),
    "MaxUnpool": (2,), "RoiAlign": (1,), "StringSplit": (0,), "HannWindow": (0,), "HammingWindow": (0,),
    "BlackmanWindow": (0,), "DFT": (1,), "STFT": (1, 3), "Loop": (0, 1), "If": (0,), "SplitToSequence": (1,),
    "BeamSearch": (0,), "GreedySearch": (0,), "Sampling": (0,),
}  # fmt: skip
"""By operator, the inputs whose values say how large an output is."""

_LIKE_THE_FIRST = frozenset({"ScatterND", "ScatterElements", "Scatter", "TensorScatter", "CumSum", "CastLike"})
_MEASURE = frozenset({"Shape", "Size"})  # read no values, only sizes


def sized_by_values(graph: ir.Graph, changed: Iterable[ir.Value]) -> dict[ir.Value, str]:
    """The values, of a graph in topological order, whose sizes may differ where `changed` have other values; each with
    the operator that makes them so ("NonZero"). `changed` may lie in bodies.

    Sizes that are written down, or that an input of the graph has by the same name, are taken to be what they say.
    """
    values, sizes = set(changed), dict[ir.Value, str]()
    known = {str(size) for value in graph.inputs for size in value.shape or () if not isinstance(size, int)}
    for node in graph:
        read = list(inputs_of(node))
        sized = next((sizes[value] for value in _sizing(node, read) if value in sizes), None)
        if sized is None and _asks(node, values):
            sized = node.op_type
        moved = _moves(node, values) or any(value in sizes for value in read)
        for output in node.outputs:
            if sized is not None and not _is_given(output, known):
                sizes[output] = sized
            if moved:
                values.add(output)
    return sizes


def _sizing(node: ir.Node, read: list[ir.Value]) -> list[ir.Value]:
    """The inputs whose sizes the outputs' sizes follow from."""
    if node.op_type in _MEASURE:
        return []
    return read[:1] if node.op_type in _LIKE_THE_FIRST else read


def _asks(node: ir.Node, values: set[ir.Value]) -> bool:
    """Whether one of `values` says how large an output of the node is, in the node or in a body of it."""
    at = SIZED_BY.get(node.op_type, ())
    if any(position < len(node.inputs) and node.inputs[position] in values for position in at):
        return True
    return _moves(node, values) and any(_asks_inside(node, body, values) for _, body in bodies_of(node))


def _asks_inside(node: ir.Node, body: ir.Graph, values: set[ir.Value]) -> bool:
    """Whether a body of a node that reads or holds some of `values` lets them say how large something is, or how often
    a Loop runs. What a body carries from run to run, or is handed, is taken to differ."""
    is_loop = node.op_type == "Loop"
    inside = values | set(body.inputs[2:] if is_loop else body.inputs)
    for inner in body:
        if _asks(inner, inside):
            return True
        if _moves(inner, inside):
            inside.update(inner.outputs)
    return is_loop and body.outputs[0] in inside


def _moves(node: ir.Node, values: set[ir.Value]) -> bool:
    """Whether some of `values` can change the numbers that a node gives: it reads them, or has them in a body."""
    if node.op_type in _MEASURE:
        return False
    return any(value in values for value in inputs_of(node)) or any(
        output in values for _, body in bodies_of(node) for inner in body.all_nodes() for output in inner.outputs
    )


def _is_given(value: ir.Value, known: set[str]) -> bool:
    return value.shape is not None and all(isinstance(size, int) or str(size) in known for size in value.shape)

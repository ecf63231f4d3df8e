"""Which values have sizes that follow from other values: as many rows as a predicted duration says, as a comparison
leaves, as an expert was given. Where norms are replaced such sizes change, and rows cannot be paired by position."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from dynorm_onnx.graph.reads import inputs_of

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
    the operator that makes them so ("NonZero").

    Sizes that are written down, or that an input of the graph has by the same name, are taken to be what they say.
    """
    values, sizes = set(changed), dict[ir.Value, str]()
    known = {str(size) for value in graph.inputs for size in value.shape or () if not isinstance(size, int)}
    for node in graph:
        read = list(inputs_of(node))
        sized = next((sizes[value] for value in _sizing(node, read) if value in sizes), None)
        if sized is None and _asks(node, values):
            sized = node.op_type
        moved = any(value in sizes or (value in values and node.op_type not in _MEASURE) for value in read)
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
    bodies = any(kind.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for kind in node.attributes.values())
    return bodies and any(value in values for value in inputs_of(node)) and _sizes_inside(node)


def _sizes_inside(node: ir.Node) -> bool:
    """Whether a body holds an operator whose output may be as large as values say."""
    return any(
        inner.op_type in SIZED_BY or _sizes_inside(inner)
        for attribute in node.attributes.values()
        for graph in _graphs(attribute)
        for inner in graph
    )


def _graphs(attribute: ir.Attr) -> Iterable[ir.Graph]:
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()


def _is_given(value: ir.Value, known: set[str]) -> bool:
    return value.shape is not None and all(isinstance(size, int) or str(size) in known for size in value.shape)

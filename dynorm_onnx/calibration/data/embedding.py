"""Which constant tables a graph indexes, and by what: the bounds of token ids and of the length of a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx_ir as ir

# operators whose result holds the elements of input 0 and no others
_ELEMENTS_KEPT = {
    "Cast",
    "Concat",
    "Expand",
    "Flatten",
    "Identity",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
# operators that exporters write torch.arange(length) and slices of constant positions with
_COUNTING = _ELEMENTS_KEPT | {
    "Add",
    "Constant",
    "ConstantOfShape",
    "Gather",
    "Mul",
    "NonZero",
    "Range",
    "Sub",
}
# models that add up their mask, RoBERTa and OPT, leave two rows in front of the first position
_FIRST_OF_CUMULATED = 2
# EmbedLayerNormalization: the input that is an index -> the input that is its table
_EMBED_LAYER_NORM_TABLES = {0: 2, 1: 4, 8: 3}


def index_bound(value: ir.Value) -> int | None:
    """Rows of the smallest constant table that `value` indexes along axis 0, None where it indexes none.

    Followed forward through casts and reshapes, into Gather, GatherBlockQuantized and
    EmbedLayerNormalization, in subgraphs too.
    """
    return min(_bounds(value, set()), default=None)


def length_bound(graph: ir.Graph) -> int | None:
    """The most tokens of an input for which no constant table of positions is indexed past its end.

    Such a table is told by its index, which counts up to the length of an input.
    """
    lengths: list[int] = []
    known: dict[ir.Value, int | None] = {}
    for node in graph.all_nodes():
        table, first = None, None
        if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
            table, first = node.inputs[0], _counts_from(node.inputs[1], known)
        elif node.op_type == "EmbedLayerNormalization" and not (len(node.inputs) > 8 and node.inputs[8]):
            table, first = node.inputs[3], 0
        shape = None if table is None else _constant_shape(table)
        if shape is not None and len(shape) >= 2 and first is not None and first >= 0:
            lengths.append(shape[0] - first)
    return min(lengths, default=None)


def _counts_from(index: ir.Value | None, known: dict[ir.Value, int | None]) -> int | None:
    """Where an index begins that goes up by one for each token: -1 if it is constant, None if it does not.

    Only operators that write out 0, 1, 2, ... from a shape and cut it are followed. Others bound their
    result by themselves, as in the buckets of relative positions. `known` are answers found before: a value
    may be reached in more ways than could be walked.
    """
    if index is None:
        return -1
    if index not in known:
        known[index] = _counted(index, known)
    return known[index]


def _counted(index: ir.Value, known: dict[ir.Value, int | None]) -> int | None:
    node = index.producer()
    if node is None:
        return -1 if index.is_initializer() else None
    if node.op_type == "Shape":
        return 0
    if node.op_type == "CumSum":
        return _FIRST_OF_CUMULATED
    if node.op_type not in _COUNTING:
        return None
    parts = [_counts_from(value, known) for value in node.inputs]
    if node.op_type == "Mul" and _FIRST_OF_CUMULATED in parts:
        return _FIRST_OF_CUMULATED  # times the mask
    counts = [part for part in parts if part is not None]
    return max(counts, default=-1) if len(counts) == len(parts) else None


def _bounds(value: ir.Value, seen: set[ir.Value]) -> Iterator[int]:
    if value in seen:
        return
    seen.add(value)
    for node, position in value.uses():
        table = table_indexed(node, position)
        if table is not None:
            shape = _constant_shape(table)
            if shape is not None and len(shape) >= 2:
                yield shape[0]
        elif node.op_type in _ELEMENTS_KEPT and (position == 0 or node.op_type == "Concat"):
            yield from _bounds(node.outputs[0], seen)


def table_indexed(node: ir.Node, position: int) -> ir.Value | None:
    """The table that input number `position` of `node` indexes along axis 0."""
    if node.op_type in ("Gather", "GatherBlockQuantized") and position == 1:
        name = "axis" if node.op_type == "Gather" else "gather_axis"
        axis = node.attributes.get_int(name, 0)
        return node.inputs[0] if axis == 0 else None
    if node.op_type == "EmbedLayerNormalization":
        table = _EMBED_LAYER_NORM_TABLES.get(position)
        return node.inputs[table] if table is not None and table < len(node.inputs) else None
    return None


def _constant_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape of a constant, or of an input that is a table to be fed; None for any other value."""
    node = value.producer()
    if node is None:
        return _static(value.const_value.shape if value.const_value is not None else value.shape)
    if node.op_type == "Constant":
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else _static(tensor.shape)
    if node.op_type in ("Cast", "Identity", "DequantizeLinear") and node.inputs[0] is not None:
        return _constant_shape(node.inputs[0])
    if node.op_type == "Transpose" and node.inputs[0] is not None:
        shape = _constant_shape(node.inputs[0])
        return None if shape is None else _permuted(shape, node)
    return None


def _static(shape: Iterable[Any] | None) -> tuple[int, ...] | None:
    sizes = tuple(shape) if shape is not None else (None,)
    return sizes if all(isinstance(size, int) for size in sizes) else None


def _permuted(shape: tuple[int, ...], node: ir.Node) -> tuple[int, ...]:
    order = node.attributes.get_ints("perm", tuple(reversed(range(len(shape)))))
    return tuple(shape[axis] for axis in order)

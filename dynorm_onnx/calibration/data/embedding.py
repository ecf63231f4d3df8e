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
# EmbedLayerNormalization: the input that is an index -> the input that is its table
_EMBED_LAYER_NORM_TABLES = {0: 2, 1: 4, 8: 3}


def index_bound(value: ir.Value) -> int | None:
    """Rows of the smallest constant table that `value` indexes along axis 0, None where it indexes none.

    Followed forward through casts and reshapes, into Gather, GatherBlockQuantized and
    EmbedLayerNormalization, in subgraphs too.
    """
    return min(_bounds(value, set()), default=None)


def length_bound(graph: ir.Graph) -> int | None:
    """Rows of the smallest constant table that is indexed by counting up to the length of an input.

    Such a table is one of positions: longer inputs would index past its end.
    """
    rows: list[int] = []
    for node in graph.all_nodes():
        if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0 and _counts(node.inputs[1]):
            table = node.inputs[0]
        elif node.op_type == "EmbedLayerNormalization" and not (len(node.inputs) > 8 and node.inputs[8]):
            table = node.inputs[3]
        else:
            continue
        shape = None if table is None else _constant_shape(table)
        if shape is not None and len(shape) >= 2:
            rows.append(shape[0])
    return min(rows, default=None)


def _counts(index: ir.Value | None) -> bool:
    """Whether an index follows from shapes alone, by operators that write out 0, 1, 2, ... and cut it.

    Others than these, as in the buckets of relative positions, bound their result by themselves.
    """
    reached, waiting, seen = False, [index], set()
    while waiting:
        value = waiting.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is None:
            if not value.is_initializer():
                return False
        elif node.op_type == "Shape":
            reached = True
        elif node.op_type in _COUNTING:
            waiting.extend(node.inputs)
        else:
            return False
    return reached


def _bounds(value: ir.Value, seen: set[ir.Value]) -> Iterator[int]:
    if value in seen:
        return
    seen.add(value)
    for node, position in value.uses():
        table = _table_indexed(node, position)
        if table is not None:
            shape = _constant_shape(table)
            if shape is not None and len(shape) >= 2:
                yield shape[0]
        elif node.op_type in _ELEMENTS_KEPT and (position == 0 or node.op_type == "Concat"):
            yield from _bounds(node.outputs[0], seen)


def _table_indexed(node: ir.Node, position: int) -> ir.Value | None:
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
    """The shape of a value that no input of the graph reaches; None for any other value."""
    if value.is_initializer():
        return _static(value.const_value.shape if value.const_value is not None else value.shape)
    node = value.producer()
    if node is None:
        return None
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

"""Takes the mean over the channels out of everything that makes up a stream."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.edit.emit import Emitter, add_initializer, set_tensor
from dynorm_onnx.graph.edit.unique_names import Names
from dynorm_onnx.graph.fold.stream import Reading, Stream, is_own
from dynorm_onnx.graph.values.mapped import computed, let_go

_BLOCK = 1 << 20  # elements of a weight that are centred at a time, in float64
_SMALL = 1 << 16
"""Bytes of a tensor up to which a stream gets a copy of its own, where something else reads the tensor too."""
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def centre(model: ir.Model, stream: Stream) -> tuple[list[str], list[str]]:
    """Gives the stream mean zero over its channels; `model` changes in place.

    Tensors that the stream has to itself are overwritten, small shared ones copied. What a Gather reads from a
    large shared table has its mean subtracted, from a table of means; what no constant makes, the mean itself.
    Returns the names of the initializers that changed or are new, and of the nodes that are new.
    """
    graph, names = model.graph, Names.of(model)
    into: list[str] = []
    added: list[str] = []
    for gather in lookups(stream):
        means, nodes = _subtract_looked_up(graph, names, gather)
        into.append(means)
        added += nodes
    for value, readings in stream.tensors.items():
        if is_own(value, readings):
            _overwrite(value, readings[0].axis)
            into.append(str(value.name))
        elif _is_copied(value):
            into += _give_copies(graph, names, value, readings)
    for value, readings in stream.cuts.items():
        added += _subtract_mean(model, names, value, readings)
    return into, added


def lookups(stream: Stream) -> list[ir.Node]:
    """The Gathers from tables that something else reads too, and that are too large for a copy."""
    return [
        reading.node
        for value, readings in stream.tensors.items()
        if not is_own(value, readings) and not _is_copied(value)
        for reading in readings
        if _is_lookup(reading)
    ]


def shared(stream: Stream) -> str | None:
    """Why a large tensor or a cut of the stream cannot be centred; None where all can."""
    for value, readings in stream.tensors.items():
        if not is_own(value, readings) and not _is_copied(value) and not all(map(_is_lookup, readings)):
            return f"the weight '{value.name}' is read elsewhere too, and must stay as it is"
    for value, readings in stream.cuts.items():
        if any(reading.axis != -1 for reading in readings):
            return f"'{value.name}' is a part of it that no weights can centre"
    return None


def _is_lookup(reading: Reading) -> bool:
    """Whether a reading is that of rows [C] of a table [V, C]."""
    node, table = reading.node, reading.node.inputs[0]
    axis = node.attributes.get("axis")
    plain = node.op_type == "Gather" and (axis is None or axis.as_int() == 0) and reading.axis == -1
    return plain and table is not None and table.shape is not None and len(table.shape) == 2


def _is_copied(value: ir.Value) -> bool:
    """Whether the stream gets a copy: of what is small, and of what a Constant node holds."""
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    return tensor.nbytes <= _SMALL or not value.is_initializer()


def _centred(stored: np.ndarray, axis: int) -> np.ndarray:
    """Less its mean along an axis, in float64, of a few rows at a time: an embedding may be a tenth of a model."""
    result = np.empty_like(stored)
    rows, new = (np.moveaxis(array, axis, -1) for array in (stored, result))
    if rows.ndim == 1:
        rows, new = rows[None], new[None]
    step = max(_BLOCK * len(rows) // max(rows.size, 1), 1)
    for start in range(0, len(rows), step):
        wide = rows[start : start + step].astype(np.float64)
        new[start : start + step] = (wide - wide.mean(-1, keepdims=True)).astype(stored.dtype)
    return result


def _overwrite(value: ir.Value, axis: int) -> None:
    """In memory; weights that lie in a file are centred each time that they are read."""
    tensor = value.const_value
    assert tensor is not None
    centred = functools.partial(_centred, axis=axis)
    set_tensor(value, computed(str(value.name), tensor.shape.numpy(), [tensor], centred))


def _give_copies(graph: ir.Graph, names: Names, value: ir.Value, readings: list[Reading]) -> list[str]:
    """A centred copy for each axis along which the stream reads a tensor; returns their names."""
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    copies: dict[int, ir.Value] = {}
    for reading in readings:
        if reading.axis not in copies:
            name = names.unique(f"{value.name}.centred")
            copies[reading.axis] = add_initializer(graph, name, _centred(tensor.numpy(), reading.axis))
        reading.node.replace_input_with(reading.position, copies[reading.axis])
    return [str(copy.name) for copy in copies.values()]


def _subtract_looked_up(graph: ir.Graph, names: Names, gather: ir.Node) -> tuple[str, list[str]]:
    """rows - means[ids]: what mean a row has is known beforehand, so that nothing is summed up.

    Returns the name of the table of means, and those of the new nodes.
    """
    table, ids = gather.inputs
    assert table is not None and ids is not None
    tensor = ir.convenience.get_const_tensor(table)
    assert tensor is not None
    stored = tensor.numpy()
    means = stored.mean(-1, dtype=np.float64, keepdims=True).astype(stored.dtype)
    let_go(table)
    rows = gather.outputs[0]
    emit = Emitter(graph, names, _next(graph, gather), str(rows.name))
    column = add_initializer(graph, names.unique(f"{table.name}.means"), means)
    looked_up = emit.op("Gather", [column, ids], {"axis": 0}, output="mean", dtype=rows.dtype)
    readers = list(rows.uses())
    centred = emit.op("Sub", [rows, looked_up], output="centred", like=rows)
    for node, position in readers:
        node.replace_input_with(position, centred)
    return str(column.name), [_giver(looked_up), _giver(centred)]


def _subtract_mean(model: ir.Model, names: Names, value: ir.Value, readings: list[Reading]) -> list[str]:
    """x - mean(x) for the stream alone, in float32 if x is of a half type; returns the new nodes."""
    graph = model.graph
    first = min((reading.node for reading in readings), key=list(graph).index)
    emit = Emitter(graph, names, first, str(value.name))
    dtype = value.dtype or ir.DataType.FLOAT
    wide = emit.cast(value, ir.DataType.FLOAT, "wide") if dtype in _HALVES else value
    if model.opset_imports[""] >= 18:
        mean = emit.op("ReduceMean", [wide, emit.integers([-1], "axis")], {"keepdims": 1}, output="mean")
    else:
        mean = emit.op("ReduceMean", [wide], {"axes": [-1], "keepdims": 1}, output="mean")
    mean.type = wide.type
    centred = emit.cast(emit.op("Sub", [wide, mean], output="centred", like=wide), dtype, "narrow")
    for reading in readings:
        reading.node.replace_input_with(reading.position, centred)
    return [_giver(mean), _giver(centred)]


def _giver(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None else str(node.name)


def _next(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """The node behind a node that is not the last of its graph."""
    nodes = list(graph)
    return nodes[nodes.index(node) + 1]

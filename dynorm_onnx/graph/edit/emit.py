"""Putting nodes and initializers into a graph under unique, readable names, and taking dead ones out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.edit.unique_names import Names

Attribute = int | float | str | Sequence[int] | ir.TensorProtocol


class Emitter:
    """Writes nodes in front of one place of a graph; their names begin with `stem`.

    They are written in the place of the nodes `old`, whose metadata they carry on.
    """

    def __init__(self, graph: ir.Graph, names: Names, place: ir.Node, stem: str, old: Sequence[ir.Node] = ()) -> None:
        self._graph = graph
        self._names = names
        self._place = place
        self._stem = stem
        self._old = old

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        domain: str = "",
        outputs: Sequence[str],
    ) -> ir.Node:
        """A node whose outputs are named `stem.OUTPUT` for each of `outputs`, and itself like the first."""
        node = ir.node(op_type, inputs, attributes or {}, domain=domain, num_outputs=len(outputs))
        for value, suffix in zip(node.outputs, outputs, strict=True):
            value.name = self._names.unique(f"{self._stem}.{suffix}")
        node.name = node.outputs[0].name
        inherit(node, self._old)
        self._graph.insert_before(self._place, node)
        return node

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        domain: str = "",
        output: str,
        like: ir.Value | None = None,
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """The one output of a new node; `like` lends its shape, and its type unless `dtype` is given."""
        value = self.node(op_type, inputs, attributes, domain=domain, outputs=[output]).outputs[0]
        if like is not None:
            value.shape = like.shape.copy() if like.shape is not None else None
            value.type = like.type
        if dtype is not None:
            value.type = ir.TensorType(dtype)
        return value

    def cast(self, value: ir.Value, dtype: ir.DataType, output: str) -> ir.Value:
        """`value` itself if it has the type already, else a Cast of it."""
        if value.dtype == dtype:
            return value
        return self.op("Cast", [value], {"to": dtype.value}, output=output, like=value, dtype=dtype)

    def add(
        self, a: ir.Value | None, b: ir.Value | None, dtype: ir.DataType, *, output: str, like: ir.Value | None = None
    ) -> ir.Value:
        """a + b, both of `dtype`; bfloat16 by way of float32, for ONNX Runtime's CPU (1.32) has no Add of it."""
        if dtype != ir.DataType.BFLOAT16:
            return self.op("Add", [a, b], output=output, like=like, dtype=dtype)
        to = {"to": ir.DataType.FLOAT.value}
        wide = [self.op("Cast", [v], to, output=f"{output}_of", like=v, dtype=ir.DataType.FLOAT) for v in (a, b)]
        total = self.op("Add", wide, output=f"{output}_wide", like=like, dtype=ir.DataType.FLOAT)
        return self.cast(total, dtype, output)

    def initializer(self, array: np.ndarray, name: str) -> ir.Value:
        """A new initializer `stem.NAME`."""
        return add_initializer(self._graph, self._names.unique(f"{self._stem}.{name}"), array)

    def integers(self, numbers: Iterable[int], name: str) -> ir.Value:
        """A new int64 vector, as shapes and axes are given."""
        return self.initializer(np.asarray(list(numbers), np.int64), name)


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Registers `array` under `name`, which must be free."""
    return add_tensor(graph, name, ir.tensor(array, name=name))


def add_tensor(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Registers `tensor` under `name`, which must be free."""
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def set_tensor(value: ir.Value, tensor: ir.Tensor | ir.LazyTensor | ir.ExternalTensor | ir.TensorProtocol) -> None:
    """Gives an initializer other data; what the file says of its tensor beside the data stays."""
    old = value.const_value
    if old is not None and old is not tensor:
        tensor.doc_string = old.doc_string
        tensor.metadata_props.update(old.metadata_props)
    value.const_value = tensor


def inherit(new: ir.Node, old: Iterable[ir.Node]) -> None:
    """Gives `new` the metadata and the doc string of the nodes whose place it takes; of two that say the same thing
    of themselves, the last is heard: it gave the result."""
    for node in reversed([*old]):
        new.doc_string = new.doc_string or node.doc_string
        for key, text in node.metadata_props.items():
            new.metadata_props.setdefault(key, text)


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Gives `new` all that `old` was: its readers, its name, its place among the graph's outputs, its metadata.

    The node of `old` must be removed after, or there are two values of one name.
    """
    if old.type is not None:
        new.type = old.type
    if old.shape is not None:
        new.shape = old.shape
    new.doc_string = old.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)  # annotations of quantisation among others
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = old.name


def remove_dead(nodes: Iterable[ir.Node]) -> None:
    """Removes those of `nodes` that nothing reads, and what only they read: nodes and initializers."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node.graph is None or any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        sources = [value for value in node.inputs if value is not None]
        node.graph.remove(node, safe=True)
        for value in sources:
            producer = value.producer()
            if producer is not None:
                pending.append(producer)
            else:
                _drop_initializer(value)


def _drop_initializer(value: ir.Value) -> None:
    unused = not (value.uses() or value.is_graph_output() or value.is_graph_input())
    if unused and value.is_initializer() and value.graph is not None:
        value.graph.initializers.pop(str(value.name))

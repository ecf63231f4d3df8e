"""What nodes in bodies of If, Loop and Scan read, given out by the main graph, from every run of their bodies.

A value of a body is handed up level by level. A branch that is not taken gives nothing; a Loop collects what its runs
give, which need not be of one shape. A Scan can collect only what is, so a Loop runs its body once more beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import MutableSequence, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.edit.emit import add_initializer, take_over
from dynorm_onnx.graph.edit.unique_names import Names
from dynorm_onnx.graph.values.reads import bodies_of, holders_of, path_to

SCAN_OPSET, FLATTEN_OPSET = 9, 11
"""Since which a Scan has no batch axis of its own; since which Flatten counts axes from the last."""


@dataclasses.dataclass(frozen=True)
class GivenOut:
    """The names of two outputs of the main graph.

    `elements` [n] are those of all that a value was, run of the body after run; `shapes`, int64 [runs, rank], those
    that it had. A value of unknown rank is taken as rows: the rank is then 2.
    """

    elements: str
    shapes: str


def give_out(model: ir.Model, name: str, dtype: ir.DataType) -> GivenOut | str:
    """Makes the first input, of type `dtype`, of the node `name` in a body an output of the main graph; in place.

    Or says, in a part of a sentence, why it cannot be. Bodies may be those of If, Loop and Scan. Outputs of the main
    graph are only added to, but nodes on the way are made anew.
    """
    return _GiveOut(model, Names.of(model)).of(name, dtype)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Elements and shapes as one graph has them, and the empty arrays that stand for no run."""

    values: tuple[ir.Value, ir.Value]
    nothing: tuple[np.ndarray, np.ndarray]

    def at(self, values: Sequence[ir.Value]) -> _Pair:
        elements, shapes = values
        return dataclasses.replace(self, values=(elements, shapes))


class _GiveOut:
    def __init__(self, model: ir.Model, names: Names) -> None:
        self._model = model
        self._names = names
        self._opset = model.opset_imports[""]

    def of(self, name: str, dtype: ir.DataType) -> GivenOut | str:
        node, path = self._outside_scans(name)
        if any(holder.op_type == "Scan" for holder, _ in path):
            return f"a Scan of opset {self._opset} has a batch axis of its own"
        x = node.inputs[0]
        assert x is not None
        if x.shape is None and self._opset < FLATTEN_OPSET:
            return "the rank of its input is not known"
        pair = self._in_body(node, x, dtype)
        for holder, attribute in path:
            if holder.op_type == "If":
                pair = self._through_if(holder, attribute, pair)
            else:
                pair = self._through_loop(holder, pair)
        self._model.graph.outputs.extend(pair.values)
        elements, shapes = pair.values
        return GivenOut(str(elements.name), str(shapes.name))

    # -- Scan -----------------------------------------------------------------------------------

    def _outside_scans(self, name: str) -> tuple[ir.Node, list[tuple[ir.Node, str]]]:
        """The node of that name with its path, or its copy in Loops where it lies in Scans."""
        while True:
            holders = holders_of(self._model.graph)
            paths = [(node, path_to(node, holders)) for node in self._model.graph.all_nodes() if node.name == name]
            node, path = min(paths, key=lambda found: sum(holder.op_type == "Scan" for holder, _ in found[1]))
            scans = [holder for holder, _ in path if holder.op_type == "Scan"]
            if not scans or self._opset < SCAN_OPSET:
                return node, path
            self._add_loop(scans[-1])

    def _add_loop(self, scan: ir.Node) -> None:
        """A Loop behind a Scan that runs a copy of its body on the same, and gives out the states alone."""
        body = scan.attributes["body"].as_graph().clone(allow_outer_scope_values=True)
        count = scan.attributes["num_scan_inputs"].as_int()
        states, scanned = scan.inputs[:-count], scan.inputs[-count:]
        axes, backwards = (
            scan.attributes[key].as_ints() if key in scan.attributes else [0] * count
            for key in ("scan_input_axes", "scan_input_directions")
        )
        new: list[ir.Node] = []
        shape = self._op(new, "Shape", [scanned[0]], dtype=ir.DataType.INT64)
        steps = self._op(new, "Gather", [shape, self._number(axes[0])], {"axis": 0}, dtype=ir.DataType.INT64)
        last = self._op(new, "Sub", [steps, self._number(1)], dtype=ir.DataType.INT64)
        step, going = self._value(ir.DataType.INT64, ()), self._value(ir.DataType.BOOL, ())
        inside: list[ir.Node] = []
        for inner, outer, axis, back in zip(body.inputs[-count:], scanned, axes, backwards, strict=True):
            at = self._op(inside, "Sub", [last, step], dtype=ir.DataType.INT64) if back else step
            element = self._op(inside, "Gather", [outer, at], {"axis": axis}, dtype=inner.dtype)
            element.shape = inner.shape
            inner.replace_all_uses_with(element, replace_graph_outputs=True)
        on = self._op(inside, "Identity", [going], dtype=ir.DataType.BOOL)
        ends, starts = list(body.outputs[: len(states)]), list(body.inputs[: len(states)])
        if len(body):
            body.insert_before(body[0], inside)
        else:
            body.extend(inside)
        _set(body.inputs, [step, going, *starts])
        _set(body.outputs, [on, *ends])
        loop = self._node("Loop", [steps, None, *states], [ir.AttrGraph("body", body)], len(states))
        assert isinstance(scan.graph, ir.Graph)
        scan.graph.insert_after(scan, [*new, loop])

    # -- the way up -----------------------------------------------------------------------------

    def _in_body(self, node: ir.Node, x: ir.Value, dtype: ir.DataType) -> _Pair:
        new: list[ir.Node] = []
        rows = x if x.shape is not None else self._op(new, "Flatten", [x], {"axis": -1}, dtype=dtype)
        rank = len(x.shape) if x.shape is not None else 2
        shape = self._op(new, "Shape", [rows], dtype=ir.DataType.INT64)
        shapes = self._op(new, "Reshape", [shape, self._numbers([1, rank])], dtype=ir.DataType.INT64)
        elements = self._op(new, "Reshape", [x, self._numbers([-1])], dtype=dtype)
        elements.shape, shapes.shape = ir.Shape([None]), ir.Shape([None, rank])
        assert isinstance(node.graph, ir.Graph)
        node.graph.insert_before(node, new)
        return _Pair((elements, shapes), (np.empty(0, dtype.numpy()), np.empty((0, rank), np.int64)))

    def _through_if(self, holder: ir.Node, attribute: str, pair: _Pair) -> _Pair:
        for name, branch in bodies_of(holder):
            if name == attribute:
                branch.outputs.extend(pair.values)
                continue
            for value, nothing in zip(pair.values, pair.nothing, strict=True):
                new: list[ir.Node] = []
                empty = self._op(new, "Constant", [], {"value": ir.tensor(nothing)}, dtype=value.dtype)
                empty.shape = ir.Shape(nothing.shape)
                branch.extend(new)
                branch.outputs.append(empty)
        first = len(holder.outputs)
        holder.resize_outputs(first + len(pair.values))
        for output, value in zip(holder.outputs[first:], pair.values, strict=True):
            self._describe(output, value)
        return pair.at(holder.outputs[first:])

    def _through_loop(self, loop: ir.Node, pair: _Pair) -> _Pair:
        body = loop.attributes["body"].as_graph()
        states = len(body.inputs) - 2
        inputs = [*loop.inputs, None, None][: 2 + states]
        new: list[ir.Node] = []
        joined: list[ir.Value] = []
        for value, nothing in zip(pair.values, pair.nothing, strict=True):
            so_far = self._value(value.dtype, ())
            so_far.shape = value.shape
            body.inputs.append(so_far)
            joined.append(self._op(new, "Concat", [so_far, value], {"axis": 0}, dtype=value.dtype))
            joined[-1].shape = value.shape
            inputs.append(add_initializer(self._model.graph, self._names.unique("given_out.nothing"), nothing))
        body.extend(new)
        _set(body.outputs, [*body.outputs[: 1 + states], *joined, *body.outputs[1 + states :]])
        count = len(joined)
        made = self._node("Loop", inputs, [*loop.attributes.values()], len(body.outputs) - 1)
        assert isinstance(loop.graph, ir.Graph)
        loop.graph.insert_before(loop, made)
        given = made.outputs[states : states + count]
        for output, value in zip(given, joined, strict=True):
            self._describe(output, value)
        others = (*made.outputs[:states], *made.outputs[states + count :])
        for old, output in zip(loop.outputs, others, strict=False):
            take_over(old, output)
        loop.graph.remove(loop, safe=True)
        return pair.at(given)

    # -- nodes and values -----------------------------------------------------------------------

    def _node(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Sequence[ir.Attr], outputs: int
    ) -> ir.Node:
        name = self._names.unique("given_out")
        node = ir.Node("", op_type, inputs, attributes, num_outputs=outputs, name=name)
        for output in node.outputs:
            output.name = self._names.unique("given_out")
        return node

    def _op(
        self,
        into: list[ir.Node],
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, int | ir.TensorProtocol] | None = None,
        *,
        dtype: ir.DataType | None,
    ) -> ir.Value:
        """The one output of a new node, which becomes the last of `into`."""
        node = self._node(op_type, inputs, ir.convenience.convert_attributes(attributes or {}), 1)
        into.append(node)
        if dtype is not None:
            node.outputs[0].type = ir.TensorType(dtype)
        return node.outputs[0]

    def _value(self, dtype: ir.DataType | None, shape: Sequence[int]) -> ir.Value:
        type_ = ir.TensorType(dtype) if dtype is not None else None
        return ir.Value(name=self._names.unique("given_out"), type=type_, shape=ir.Shape(shape))

    def _describe(self, output: ir.Value, like: ir.Value) -> None:
        output.name = self._names.unique("given_out")
        output.type = like.type
        output.shape = ir.Shape([None] * len(like.shape)) if like.shape is not None else None

    def _number(self, number: int) -> ir.Value:
        return add_initializer(self._model.graph, self._names.unique("given_out.number"), np.array(number, np.int64))

    def _numbers(self, numbers: Sequence[int]) -> ir.Value:
        return add_initializer(self._model.graph, self._names.unique("given_out.numbers"), np.array(numbers, np.int64))


def _set(container: MutableSequence[ir.Value], values: Sequence[ir.Value]) -> None:
    container.clear()
    container.extend(values)

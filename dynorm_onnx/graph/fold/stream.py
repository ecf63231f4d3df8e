"""Streams: all values over channels that norms alone read as they are.

From the input of one norm the search goes forwards and backwards through every node that adds up or
moves rows of channels. It ends at tensors (weights and biases of linear layers, embedding tables), which can
be changed; at cuts, where something else gives out a part of the stream; and at obstacles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import onnx_ir as ir

from dynorm_onnx.graph.fold.moves import axis_after, axis_before, rows_read, size_at
from dynorm_onnx.graph.linear.find import FLOATS
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.values.fixed import fixed_tensor, is_fixed

_SHAPE_ONLY = frozenset({"Shape", "Size"})


@dataclasses.dataclass(frozen=True)
class Reading:
    """Where a node reads something whose channels are along `axis`."""

    node: ir.Node
    position: int
    axis: int


@dataclasses.dataclass(eq=False)
class Stream:
    """One stream; nothing may be done to it if it has an obstacle."""

    channels: int
    norms: list[LoweredNorm] = dataclasses.field(default_factory=list)  # those that read it
    tensors: dict[ir.Value, list[Reading]] = dataclasses.field(default_factory=dict)  # constants that make it up
    cuts: dict[ir.Value, list[Reading]] = dataclasses.field(default_factory=dict)  # parts that no constant makes
    obstacle: str | None = None


def find_streams(graph: ir.Graph, norms: Sequence[LoweredNorm], invariant: Collection[ir.Node]) -> Iterator[Stream]:
    """The streams of `norms` whose channels are known, each norm in one of them.

    `invariant` are other nodes that may read a stream, since what is to be done to it does not matter to them.
    """
    wanted = {norm.node: norm for norm in norms if norm.channels}
    seen: set[ir.Node] = set()
    for node, norm in wanted.items():
        if node in seen:
            continue
        stream = _Search(graph, norm.channels or 0, wanted, invariant).run(norm)
        seen.update(other.node for other in stream.norms)
        yield stream


class _Search:
    """One walk from one norm."""

    def __init__(
        self,
        graph: ir.Graph,
        channels: int,
        wanted: dict[ir.Node, LoweredNorm],
        invariant: Collection[ir.Node],
    ) -> None:
        self._graph = graph
        self._wanted = wanted
        self._invariant = invariant
        self._axes: dict[ir.Value, int] = {}
        self._read: set[Reading] = set()
        self._pending: list[ir.Value] = []
        self._stream = Stream(channels)

    def run(self, norm: LoweredNorm) -> Stream:
        self._take_norm(norm)
        while self._pending and self._stream.obstacle is None:
            value = self._pending.pop()
            self._sources(value, self._axes[value])
            self._readers(value, self._axes[value])
        if self._stream.obstacle is not None and norm not in self._stream.norms:
            self._stream.norms.append(norm)
        return self._stream

    def _take_norm(self, norm: LoweredNorm) -> None:
        if norm not in self._stream.norms:
            self._stream.norms.append(norm)
            self._operand(Reading(norm.node, 0, -1))

    def _operand(self, reading: Reading) -> None:
        """Sorts what a node reads: further stream, a constant, or a cut."""
        if reading in self._read:
            return
        self._read.add(reading)
        value = reading.node.inputs[reading.position]
        assert value is not None
        size = size_at(value, reading.axis)
        if size != self._stream.channels:
            said = "is not known" if size is None else f"is {size}"
            self._stop(f"'{value.name}' is added to it, whose size over the {self._stream.channels} channels {said}")
        elif fixed_tensor(value) is not None:
            self._tensor(value, reading)
        elif self._goes_on(value, reading.axis):
            self._visit(value, reading.axis)
        else:
            self._stream.cuts.setdefault(value, []).append(reading)

    def _goes_on(self, value: ir.Value, axis: int) -> bool:
        """Whether the node that gives `value` out passes rows on or is linear with constant weights."""
        node = value.producer()
        if node is None or node.graph is not self._graph or value is not node.outputs[0]:
            return False
        if written(node, axis):
            return True
        places = rows_read(node)
        return bool(places) and all(axis_before(node, i, axis, self._stream.channels) is not None for i in places)

    def _visit(self, value: ir.Value, axis: int) -> None:
        known = self._axes.setdefault(value, axis)
        if known != axis:
            self._stop(f"'{value.name}' is read along two axes")
        elif value not in self._pending:
            self._pending.append(value)

    def _tensor(self, value: ir.Value, reading: Reading) -> None:
        if value.dtype not in FLOATS:
            self._stop(f"'{value.name}' is not of a float type")
        self._stream.tensors.setdefault(value, []).append(reading)

    def _sources(self, value: ir.Value, axis: int) -> None:
        node = value.producer()
        assert node is not None
        weights = written(node, axis)
        for reading in weights:
            tensor = reading.node.inputs[reading.position]
            assert tensor is not None
            if reading not in self._read:
                self._read.add(reading)
                self._tensor(tensor, reading)
        if weights:
            return
        for position in rows_read(node):
            before = axis_before(node, position, axis, self._stream.channels)
            assert before is not None
            self._operand(Reading(node, position, before))

    def _readers(self, value: ir.Value, axis: int) -> None:
        if value.is_graph_output():
            self._stop(f"'{value.name}' is an output of the graph")
        for node, position in value.uses():
            norm = self._wanted.get(node)
            if norm is not None and position == 0 and axis == -1:
                self._take_norm(norm)
            elif node in self._invariant or (node.domain == "" and node.op_type in _SHAPE_ONLY):
                continue
            elif node.graph is self._graph and position in rows_read(node):
                after = axis_after(node, position, axis, self._stream.channels)
                if after is None:
                    self._stop(f"{node.op_type} '{node.name}' does not keep its channels together")
                else:
                    self._joined(node, after)
            else:
                self._stop(f"{node.op_type} '{node.name}' reads it too")

    def _joined(self, node: ir.Node, axis: int) -> None:
        """A node that reads the stream continues it, if all that it passes on can."""
        if self._goes_on(node.outputs[0], axis):
            self._visit(node.outputs[0], axis)
        else:
            self._stop(f"{node.op_type} '{node.name}' does not keep its channels together")

    def _stop(self, reason: str) -> None:
        if self._stream.obstacle is None:
            self._stream.obstacle = reason


def is_own(value: ir.Value, readings: Sequence[Reading]) -> bool:
    """Whether only the stream reads an initializer, and along one axis."""
    places = {(reading.node, reading.position) for reading in readings}
    return (
        is_fixed(value)
        and not value.is_graph_output()
        and {(node, position) for node, position in value.uses()} == places
        and len({reading.axis for reading in readings}) == 1
    )


def written(node: ir.Node, axis: int) -> tuple[Reading, ...]:
    """The constant weight (and bias) of a linear node that makes up `axis` of its output; else none.

    Where all of them have mean zero over their axis, the output has over its.
    """
    key = (node.domain, node.op_type)
    if key == ("", "MatMul") and axis == -1:
        readings = [Reading(node, 1, -1)]
    elif key == ("com.microsoft", "FusedMatMul") and axis == -1:
        if _flag(node, "transBatchB"):
            return ()
        readings = [Reading(node, 1, -2 if _flag(node, "transB") else -1)]
    elif key == ("", "Gemm") and axis == -1:
        readings = [Reading(node, 1, -2 if _flag(node, "transB") else -1), *_bias(node, -1)]
    elif key == ("", "Conv") and _flag(node, "group", 1) == 1:
        weight = node.inputs[1]
        rank = 0 if weight is None or weight.shape is None else len(weight.shape)
        if rank < 3 or axis != 1 - rank:
            return ()
        readings = [Reading(node, 1, -rank), *_bias(node, -1)]
    else:
        return ()
    output = size_at(node.outputs[0], axis)
    return tuple(readings) if all(_is_constant(reading, output) for reading in readings) else ()


def _bias(node: ir.Node, axis: int) -> list[Reading]:
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    return [Reading(node, 2, axis)] if has_bias else []


def _is_constant(reading: Reading, size: int | None) -> bool:
    value = reading.node.inputs[reading.position]
    if value is None or fixed_tensor(value) is None:
        return False
    found = size_at(value, reading.axis)
    return found is not None and found > 1 and (size is None or size == found)


def _flag(node: ir.Node, name: str, default: int = 0) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()

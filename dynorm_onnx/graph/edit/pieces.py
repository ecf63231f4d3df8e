"""Parts of a graph as models of their own, and a graph cut into parts of bounded weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from dynorm_onnx.graph.values.reads import inputs_of


@dataclasses.dataclass(frozen=True)
class Piece:
    """The values, by name, that a part of a graph reads and makes."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def part_of_model(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """What leads from `inputs` to `outputs` (names of values of the main graph), as a model; tensors are shared."""
    graph = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    graph.opset_imports.update(model.graph.opset_imports)
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(graph, ir_version=model.ir_version, functions=functions)


def weight_bytes(model: ir.Model) -> int:
    """The size of all initializers."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def cut_by_weights(graph: ir.Graph, limit: int) -> list[Piece]:
    """Consecutive pieces of the graph (its nodes in topological order) with about `limit` bytes of weights at most.

    A single node with larger weights is a piece of its own. What follows from constants alone belongs to every
    piece that reads it.
    """
    place = _places(graph, limit)
    feeds = {value for value in graph.inputs if not value.is_initializer()}
    count = max(place.values(), default=0) + 1
    inputs: list[dict[str, None]] = [{} for _ in range(count)]
    outputs: list[dict[str, None]] = [{} for _ in range(count)]
    for node, here in place.items():
        for value in inputs_of(node):
            made = place.get(value.producer())  # type: ignore[arg-type]
            if value in feeds or (made is not None and made < here):
                inputs[here][str(value.name)] = None
            if made is not None and made < here:
                outputs[made][str(value.name)] = None
    for value in graph.outputs:
        # An output that follows from no input goes with the last piece.
        made = place.get(value.producer(), count - 1)  # type: ignore[arg-type]
        outputs[made][str(value.name)] = None
    return [Piece(tuple(i), tuple(o)) for i, o in zip(inputs, outputs, strict=True) if o]


def _places(graph: ir.Graph, limit: int) -> dict[ir.Node, int]:
    """The piece of every node that depends on an input of the graph."""
    varying = {value for value in graph.inputs if not value.is_initializer()}
    behind: dict[ir.Value, frozenset[ir.Value]] = {}  # the initializers that a constant value is computed from
    place: dict[ir.Node, int] = {}
    piece, held = 0, set[ir.Value]()
    for node in graph:
        read = list(inputs_of(node))
        own = {weight for value in read for weight in _weights(value, behind)}
        if not any(value in varying for value in read):
            behind.update(dict.fromkeys(node.outputs, frozenset(own)))
            continue
        varying.update(node.outputs)
        if held and _bytes(held | own) > limit:
            piece, held = piece + 1, set()
        held |= own
        place[node] = piece
    return place


def _weights(value: ir.Value, behind: dict[ir.Value, frozenset[ir.Value]]) -> frozenset[ir.Value]:
    return frozenset([value]) if value.is_initializer() else behind.get(value, frozenset())


def _bytes(weights: set[ir.Value]) -> int:
    return sum(value.const_value.nbytes for value in weights if value.const_value is not None)

"""What a node reads, its bodies included."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def inputs_of(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads, those that its subgraphs capture from outside included."""
    for value in node.inputs:
        if value is not None:
            yield value
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield from _captured(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from _captured(graph)


def _captured(graph: ir.Graph) -> Iterator[ir.Value]:
    inside = set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        inside.update(node.outputs)
    for node in graph:
        yield from (value for value in inputs_of(node) if value not in inside)

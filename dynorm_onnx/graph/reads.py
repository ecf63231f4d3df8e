"""The bodies of a node, and what it reads, they included."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def inputs_of(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads, those that its subgraphs capture from outside included."""
    for value in node.inputs:
        if value is not None:
            yield value
    for _, body in bodies_of(node):
        yield from _captured(body)


def bodies_of(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """The graphs that a node holds, each with the name of its attribute."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from ((name, graph) for graph in attribute.as_graphs())


def _captured(graph: ir.Graph) -> Iterator[ir.Value]:
    inside = set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        inside.update(node.outputs)
    for node in graph:
        yield from (value for value in inputs_of(node) if value not in inside)

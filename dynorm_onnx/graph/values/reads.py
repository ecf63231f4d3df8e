"""The bodies of a node, what holds a body, and what a node reads, its bodies included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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


def holders_of(graph: ir.Graph) -> dict[ir.Graph, tuple[ir.Node, str]]:
    """For every body below a graph, at any depth, the node that holds it and the name of its attribute."""
    found: dict[ir.Graph, tuple[ir.Node, str]] = {}
    for node in graph:
        for attribute, body in bodies_of(node):
            found[body] = (node, attribute)
            found |= holders_of(body)
    return found


def path_to(node: ir.Node, holders: Mapping[ir.Graph, tuple[ir.Node, str]]) -> list[tuple[ir.Node, str]]:
    """The nodes that hold a node, each with the name of its attribute, from the inside out; none in the main graph."""
    path: list[tuple[ir.Node, str]] = []
    while node.graph in holders:
        path.append(holders[node.graph])  # type: ignore[index]  # no function
        node = path[-1][0]
    return path


def _captured(graph: ir.Graph) -> Iterator[ir.Value]:
    inside = set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        inside.update(node.outputs)
    for node in graph:
        yield from (value for value in inputs_of(node) if value not in inside)

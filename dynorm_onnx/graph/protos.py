"""All nodes and graphs of a protobuf model: those of bodies of If, Loop and Scan, and of functions, too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Of the graph, of functions, and of all bodies in them."""
    for graph in graphs_of(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def graphs_of(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph and all bodies, those in functions too."""
    yield model.graph
    yield from graphs_in(model.graph.node)
    for function in model.functions:
        yield from graphs_in(function.node)


def graphs_in(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """The bodies of nodes, and those in them."""
    for node in nodes:
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield graph
                yield from graphs_in(graph.node)

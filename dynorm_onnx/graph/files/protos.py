"""All nodes, graphs and tensors of a protobuf model: those of bodies of If, Loop and Scan, and of functions, too."""

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


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The initializers of all graphs, and the tensors in attributes of all nodes."""
    for graph in graphs_of(model):
        yield from graph.initializer
    for node in nodes_of(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def graphs_in(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """The bodies of nodes, and those in them."""
    for node in nodes:
        for attribute in node.attribute:
            for graph in bodies_in(attribute):
                yield graph
                yield from graphs_in(graph.node)


def bodies_in(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """The graphs that one attribute holds itself."""
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def spelled(node: onnx.NodeProto) -> str:
    """A node as a sentence names it."""
    return f"{node.op_type} {node.name!r}" if node.name else f"an unnamed {node.op_type}"

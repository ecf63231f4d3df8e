"""Names of values that a file gives twice, or that it reads and nobody gives. ONNX forbids both; of two that have one
name ONNX Runtime lets some through, and then a reader gets whichever it comes upon."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import onnx

from dynorm_onnx.errors import ModelError
from dynorm_onnx.graph.files.protos import bodies_in, spelled


def refuse_ambiguous(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Raises ModelError, naming the value, where two of a graph's inputs, initializers and outputs of nodes have one
    name, or where a name is read that is given neither there nor in a graph around it.

    Of initializers that are equal to the last bit one is meant.
    """
    problem = next(_problems_of_graph(proto.graph, "", frozenset()), None)
    for function in proto.functions:
        names = ((name, "an input") for name in function.input)
        where = f" in the function {function.name!r}"
        problem = problem or next(_problems(names, function.node, function.output, where, frozenset()), None)
    if problem is not None:
        raise ModelError(f"{path}: is not a valid ONNX model: the name {problem}")


def _problems_of_graph(graph: onnx.GraphProto, where: str, outer: frozenset[str]) -> Iterator[str]:
    outputs = [value.name for value in graph.output]
    yield from _problems(_given_from_the_start(graph), graph.node, outputs, where, outer)


def _problems(
    start: Iterable[tuple[str, str]],
    nodes: Iterable[onnx.NodeProto],
    outputs: Iterable[str],
    where: str,
    outer: frozenset[str],
) -> Iterator[str]:
    """What is wrong with the names of one graph, of which `start` is there before any node; then with its bodies'."""
    makers = dict[str, str]()
    for name, maker in (*start, *((name, spelled(node)) for node in nodes for name in node.output if name)):
        if name in makers:
            yield f"{name!r} is given twice{where}, by {makers[name]} and by {maker}"
        makers[name] = maker
    known = outer | makers.keys()
    for node in nodes:
        for name in node.input:
            if name and name not in known:
                yield f"{name!r} is read{where} by {spelled(node)}, and nothing gives it"
    yield from (f"{name!r} is an output{where}, and nothing gives it" for name in outputs if name not in known)
    for node in nodes:
        for attribute in node.attribute:
            for body in bodies_in(attribute):
                yield from _problems_of_graph(body, f" in the {attribute.name} of {spelled(node)}", known)


def _given_from_the_start(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """Name and kind of the inputs and initializers; an initializer of an input's name is its default."""
    inputs = {value.name for value in graph.input}
    yield from ((value.name, "an input") for value in graph.input)
    seen: dict[str, onnx.TensorProto] = {}
    for tensor in graph.initializer:
        is_default = tensor.name in inputs and tensor.name not in seen
        if not is_default and seen.get(tensor.name) != tensor:
            yield tensor.name, "an initializer"
        seen[tensor.name] = tensor

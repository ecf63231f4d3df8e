"""Which operators of a model can run here: asked before anything is made of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from dynorm_onnx.errors import ModelError
from dynorm_onnx.graph.values.reads import bodies_of
from dynorm_onnx.pytorch.graph.operators import OPERATORS, TORCH_TYPES
from dynorm_onnx.pytorch.graph.tensors import is_held

_NAMED = 3  # nodes of one operator


def require_known(model: ir.Model, leave: Collection[ir.Node] = ()) -> None:
    """Raises ModelError where the model has nodes without an operator here, or tensors of types that torch lacks.

    The message names all of them, with counts. Nodes in bodies, and in local functions that are called, count too;
    those of `leave` do not.
    """
    unknown: dict[str, list[str]] = defaultdict(list)
    for node in _nodes(model, model.graph, frozenset(leave)):
        domain = _domain(node)
        if (domain, node.op_type) not in OPERATORS:
            opset = model.opset_imports.get(node.domain, 1)
            unknown[f"{domain or 'ai.onnx'}::{node.op_type}, opset {opset}"].append(node.name or _first_output(node))
    if unknown:
        listed = "; ".join(f"{operator} ({_listed(names)})" for operator, names in unknown.items())
        count = f"{len(unknown)} operators have" if len(unknown) > 1 else "an operator has"
        raise ModelError(f"the graph cannot run in PyTorch: {count} no counterpart there: {listed}")
    types: dict[str, list[str]] = defaultdict(list)
    for name, tensor in _tensors(model):
        if not is_held(tensor):
            types[tensor.dtype.name].append(name)
    for value in model.graph.inputs:
        if value.type is not None and (not isinstance(value.type, ir.TensorType) or value.dtype not in TORCH_TYPES):
            types[str(value.type)].append(str(value.name))
    if types:
        listed = "; ".join(f"{kind} ({_listed(names, 'tensor')})" for kind, names in types.items())
        raise ModelError(f"the graph cannot run in PyTorch, which cannot hold elements of {listed}")


def _nodes(model: ir.Model, nodes: Iterable[ir.Node], leave: frozenset[ir.Node]) -> Iterator[ir.Node]:
    for node in nodes:
        if node in leave:
            continue
        function = model.functions.get(node.op_identifier())
        if function is not None and (_domain(node), node.op_type) not in OPERATORS:
            yield from _nodes(model, function, leave)
            continue
        yield node
        for _, body in bodies_of(node):
            yield from _nodes(model, body, leave)


def _tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.uses():
                yield str(value.name), value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield _first_output(node), attribute.as_tensor()


def _domain(node: ir.Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _first_output(node: ir.Node) -> str:
    return next((str(value.name) for value in node.outputs if value.name), "")


def _listed(names: list[str], what: str = "node") -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    return f"{len(names)} {what}{'s' * (len(names) > 1)}: {shown}{', ...' * (len(names) > _NAMED)}"

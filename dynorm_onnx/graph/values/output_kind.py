"""Whether an output [samples, n] is the scores of n classes or a vector, as far as the graph tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import onnx_ir as ir

from dynorm_onnx.functions import DOMAIN

OutputKind = Literal["classes", "vector"]

# one value in, the same numbers out in another order, shape, type or scale
_PASSING = frozenset({
    "Identity", "Cast", "CastLike", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Dropout", "Gather",
    "Slice", "QuantizeLinear", "DequantizeLinear",
})  # fmt: skip
_SCALING = frozenset({"Mul", "Div", "Add", "Sub", "Clip"})
_CHOICES = frozenset({"Softmax", "LogSoftmax", "Hardmax", "Sigmoid"})
_READ_AS_CHOICE = frozenset({"Softmax", "LogSoftmax", "Hardmax", "ArgMax", "TopK"})
_LINEAR = frozenset({"Conv", "Gemm", "MatMul"})
# the last thing that is done to an embedding: pooled, normalised, or squashed as BERT's pooler does
_POOLING = frozenset({
    "ReduceMean", "ReduceSum", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool",
})  # fmt: skip
_NORMS = frozenset({
    "LpNormalization", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
    "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "BatchNormalization", "Tanh",
})  # fmt: skip
_LENGTHS = frozenset({"ReduceL2", "ReduceSumSquare"})
_FOLLOWED = 64  # nodes


def output_kinds(graph: ir.Graph) -> Mapping[str, OutputKind]:
    """The outputs by name of which the graph tells what they are; the others are left out.

    Scores go through a softmax or a sigmoid, or something takes the largest of them. A vector comes out of a norm, of a
    division by its length, or of pooling. What comes out of a linear layer and is read by nobody may be either.
    """
    kinds = {value.name: _kind(value) for value in graph.outputs if value.name}
    return {name: kind for name, kind in kinds.items() if name is not None and kind is not None}


def _kind(value: ir.Value) -> OutputKind | None:
    if _walk(value, _consumers, _chooses) is not None:
        return "classes"
    source = _walk(value, _producer, lambda node: _is_choice(node) or _makes_vector(node))
    if source is None:
        return None
    return "classes" if _is_choice(source) else "vector"


def _chooses(node: ir.Node) -> bool:
    """Whether a node reads scores. A sigmoid gates features too, unless it is what the model gives out."""
    is_given_out = node.op_type == "Sigmoid" and node.outputs[0].is_graph_output()
    return node.op_type in _READ_AS_CHOICE or is_given_out


def _is_choice(node: ir.Node) -> bool:
    return node.op_type in _CHOICES or (_divides_by_length(node) and _producer_type(node.inputs[0]) == "Exp")


def _makes_vector(node: ir.Node) -> bool:
    if node.op_type in _POOLING:
        # of a map of every class the mean is scores
        return _producer_type(node.inputs[0]) not in _LINEAR
    return node.op_type in _NORMS or node.domain == DOMAIN or _divides_by_length(node)


def _producer_type(value: ir.Value | None) -> str | None:
    """The operator that made a value, a Relu and a bias left aside."""
    node = value.producer() if value is not None else None
    while node is not None and (node.op_type == "Relu" or (node.op_type == "Add" and _is_scaled(node))):
        carried = _carried(node)
        node = carried.producer() if carried is not None else None
    return node.op_type if node is not None else None


def _walk(
    start: ir.Value, following: Callable[[ir.Value], list[ir.Node]], decides: Callable[[ir.Node], bool]
) -> ir.Node | None:
    """The first node that decides of those that are reached from the value through nodes that keep its numbers."""
    seen: set[ir.Node] = set()
    pending = following(start)
    while pending and len(seen) < _FOLLOWED:
        node = pending.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if decides(node):
            return node
        if node.op_type in _PASSING or (node.op_type in _SCALING and _is_scaled(node)):
            value = node.outputs[0] if following is _consumers else _carried(node)
            pending += following(value) if value is not None else []
    return None


def _consumers(value: ir.Value) -> list[ir.Node]:
    return [node for node, position in value.uses() if position == 0 or node.op_type in _SCALING]


def _producer(value: ir.Value) -> list[ir.Node]:
    node = value.producer()
    return [] if node is None else [node]


def _carried(node: ir.Node) -> ir.Value | None:
    """The operand whose numbers go on: of a scaled one, that which is no weight."""
    operands = [value for value in node.inputs if value is not None]
    return next((value for value in operands if value.const_value is None), operands[0] if operands else None)


def _is_scaled(node: ir.Node) -> bool:
    """Whether all operands but one are constants, as a temperature or a norm's weight is."""
    return sum(value is not None and value.const_value is None for value in node.inputs) == 1


def _divides_by_length(node: ir.Node) -> bool:
    """Whether a value is divided by what a reduction made of it, directly or through a root, a bound, a broadcast."""
    if node.op_type not in ("Div", "Mul") or len(node.inputs) != 2:
        return False
    operands = node.inputs if node.op_type == "Mul" else node.inputs[1:]
    return any(value is not None and _is_reduced(value) for value in operands)


def _is_reduced(value: ir.Value) -> bool:
    for _ in range(_FOLLOWED):
        node = value.producer()
        if node is None:
            return False
        if node.op_type in _LENGTHS | {"ReduceSum", "ReduceMean"}:
            return True
        if node.op_type not in _PASSING | {"Sqrt", "Pow", "Max", "Clip", "Add", "Expand", "Reciprocal", "Div", "Shape"}:
            return False
        first = next((own for own in node.inputs if own is not None and own.const_value is None), None)
        if first is None:
            return False
        value = first
    return False

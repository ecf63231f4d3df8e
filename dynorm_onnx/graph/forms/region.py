"""The values around one norm, each with its normal form: a walk forward from x."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Mapping

import onnx_ir as ir

from dynorm_onnx.graph.forms.affine import is_parameter
from dynorm_onnx.graph.forms.algebra import LARGEST, Parameter, Polynomial
from dynorm_onnx.graph.forms.operators import OPERANDS, OPERATORS, Frame
from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import FLOATS, is_op, is_quantiser

NODES = 1000  # a norm has a dozen; but a context may be read, and normalised, in every layer


@dataclasses.dataclass(frozen=True)
class Region:
    """Normal forms by value, in graph order. `frame` says whose moments they speak of."""

    frame: Frame
    forms: dict[ir.Value, Polynomial]

    def covered(self, y: ir.Value) -> list[ir.Node]:
        """The nodes on the ways from x to y, in graph order."""
        nodes: set[ir.Node] = set()
        pending = [y]
        while pending:
            value = pending.pop()
            node = value.producer()
            if value is self.frame.x or value not in self.forms or node is None or node in nodes:
                continue
            nodes.add(node)
            pending.extend(i for i in node.inputs if i is not None)
        return sorted(nodes, key=self.frame.index.position)


def walk(frame: Frame, given: Mapping[ir.Value, Polynomial] | None = None) -> Region:
    """All values downstream of x whose formula is known; it ends where an operator has none.

    `given` are formulas of values that x leads to by operators without one.
    """
    index, forms = frame.index, {frame.x: Polynomial.symbol("x"), **(given or {})}
    queue: list[tuple[int, ir.Node]] = []
    seen: set[ir.Node] = set()

    def push(value: ir.Value) -> None:
        for node in index.consumers(value):
            known = node.op_type in OPERATORS and (is_op(node, node.op_type) or is_quantiser(node))
            if node in index and node not in seen and known:
                seen.add(node)
                heapq.heappush(queue, (index.position(node), node))

    for value in list(forms):
        push(value)
    while queue and len(forms) < NODES:
        _, node = heapq.heappop(queue)
        form = _evaluate(frame, node, forms)
        if form is not None and len(form.terms) <= LARGEST and node.outputs[0] not in forms:
            forms[node.outputs[0]] = form
            push(node.outputs[0])
    return Region(frame, forms)


def _evaluate(frame: Frame, node: ir.Node, forms: dict[ir.Value, Polynomial]) -> Polynomial | None:
    inputs = list(node.inputs)[OPERANDS.get(node.op_type, slice(None))]
    operands = [_operand(frame.index, value, forms) for value in inputs]
    known = [operand for operand in operands if operand is not None]
    if len(known) < len(operands) or not known:
        return None
    if node.op_type == "Cast" and frame.index.dtype(node.outputs[0]) not in FLOATS:
        return None
    return OPERATORS[node.op_type](frame, node, known)


def _operand(index: GraphIndex, value: ir.Value | None, forms: dict[ir.Value, Polynomial]) -> Polynomial | None:
    if value is None:
        return None
    if value in forms:
        return forms[value]
    number = index.scalar(value)
    if number is not None:
        return Polynomial.constant(number)
    return Polynomial.symbol(Parameter(value)) if is_parameter(index, value) else None

"""Our functions as nodes of a graph: what their inputs are to them, and their residual sums as nodes of their own."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from dynorm_onnx.functions import DOMAIN, OPERATORS, Function
from dynorm_onnx.graph.edit.emit import take_over
from dynorm_onnx.pytorch.graph.program import Program, Step


def function_inputs(node: ir.Node) -> dict[str, ir.Value]:
    """What one of our functions reads beside its data, by the operator's names for it; empty for any other node."""
    if node.domain != DOMAIN or node.op_type not in OPERATORS:
        return {}
    kind, form = OPERATORS[node.op_type]
    named = zip(kind.input_names(form), node.inputs, strict=True)
    return {role: value for role, value in named if role not in ("X", "skip") and value is not None}


@dataclasses.dataclass(frozen=True)
class FunctionStep:
    """A step of a program that is one of our functions: `inputs` are names of values by what they are to it."""

    name: str
    function: Function
    step: Step
    inputs: dict[str, str]


def function_steps(program: Program) -> tuple[FunctionStep, ...]:
    """All of a program, in its order."""
    found = []
    for step in program.steps:
        if step.node.domain == DOMAIN and step.node.op_type in OPERATORS:
            kind, form = OPERATORS[step.node.op_type]
            named = zip(kind.input_names(form), step.inputs, strict=True)
            inputs = {role: name for role, name in named if name is not None}
            found.append(FunctionStep(step.node.name, kind, step, inputs))
    return tuple(found)


def separate_sums(graph: ir.Graph) -> None:
    """Makes each Skip form of our functions an Add and the plain form, in place.

    Between the two nothing but the stream is alive, so that a graph can be cut there; before and after one node that
    does both, there are always two values.
    """
    for node in list(graph):
        if node.domain != DOMAIN or node.op_type not in OPERATORS or not OPERATORS[node.op_type][1].skip:
            continue
        kind, form = OPERATORS[node.op_type]
        add = ir.node("Add", node.inputs[:2], name=f"{node.name}.sum")
        total = add.outputs[0]
        total.name = f"{node.name}.total"
        plain = ir.node(
            kind.node_type(dataclasses.replace(form, skip=False)), [total, *node.inputs[2:]], domain=DOMAIN,
            name=node.name,
        )  # fmt: skip
        graph.insert_before(node, [add, plain])
        take_over(node.outputs[0], plain.outputs[0])
        if len(node.outputs) > 1:
            take_over(node.outputs[1], total)
        graph.remove(node, safe=True)

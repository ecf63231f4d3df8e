"""Which values are the same in every run."""

from __future__ import annotations

import onnx_ir as ir

from dynorm_onnx.graph.values.reads import inputs_of

RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
)

INITIALIZERS_ARE_CONSTANTS_BELOW = 4
"""The IR version since which an initializer that is an input too is a default that a run may overrule. Before, all had
to be inputs, and none was meant to be fed."""


def is_fixed(value: ir.Value) -> bool:
    """Whether a value is an initializer that no run can feed another value for.

    One that is a graph input too holds what the input is by default: nothing may be folded, absorbed or solved from it.
    """
    return value.is_initializer() and not value.is_graph_input()


def without_constant_inputs(model: ir.Model) -> None:
    """Takes initializers out of the inputs of a model of an IR version in which they had to be, and raises that."""
    if model.ir_version is None or model.ir_version >= INITIALIZERS_ARE_CONSTANTS_BELOW:
        return
    kept = [value for value in model.graph.inputs if not value.is_initializer()]
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    model.ir_version = INITIALIZERS_ARE_CONSTANTS_BELOW


def fixed_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """What a fixed initializer or a Constant node holds."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def constant_values(graph: ir.Graph) -> set[ir.Value]:
    """The values that nothing fed for an input without a default changes, of a graph whose nodes are in topological
    order: the initializers, and what follows from them alone. What is drawn at random is none of them.
    """
    found = set(graph.initializers.values())
    for node in graph:
        if node.op_type not in RANDOM and found.issuperset(inputs_of(node)):
            found.update(node.outputs)
    return found

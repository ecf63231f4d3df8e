"""A graph as a list of steps: which operator, on which values, and which values are not needed after."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch

from dynorm_onnx.errors import ModelError
from dynorm_onnx.graph.values.reads import inputs_of
from dynorm_onnx.pytorch.graph.operators import OPERATORS, Entry, Node
from dynorm_onnx.pytorch.graph.tensors import to_torch

Values = dict[str, Any]
"""Tensors (or lists of them) by the names of the graph's values."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One node, ready to run; `free` are the values that nothing reads after it."""

    node: Node
    entry: Entry
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    reads: frozenset[str]  # the inputs, and what bodies capture
    bodies: Mapping[str, Program]
    free: tuple[str, ...] = ()

    def run(self, values: Values) -> None:
        """Puts the outputs into `values`. An error of torch's comes out as a ModelError that names the node."""
        arguments = [None if name is None else values[name] for name in self.inputs]
        node = self.node
        if self.bodies:
            found = {name: functools.partial(body.call, values) for name, body in self.bodies.items()}
            node = dataclasses.replace(node, attributes={**node.attributes, **found})
        try:
            results = self.entry.run(node, *_on_one_device(arguments, self.entry.host))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            shapes = ", ".join(str(tuple(a.shape)) if isinstance(a, torch.Tensor) else "-" for a in arguments)
            raise ModelError(f"{node} failed in PyTorch on shapes {shapes}: {error}") from error
        if not isinstance(results, tuple):
            results = (results,)
        for name, result in zip(self.outputs, results, strict=False):
            if name is not None:
                values[name] = result


@dataclasses.dataclass(frozen=True)
class Program:
    """A graph in order. `constants` are its initializers that are no parameters of a module."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, torch.Tensor]

    def run(self, values: Values, start: int = 0, stop: int | None = None) -> None:
        """Runs the steps from `start` to before `stop` on the values, which it adds to and takes from."""
        for step in self.steps[start:stop]:
            step.run(values)
            for name in step.free:
                values.pop(name, None)

    def call(self, outer: Values, arguments: Sequence[Any]) -> list[Any]:
        """As the body of a node: with the values around it in sight."""
        values = {**outer, **self.constants, **dict(zip(self.inputs, arguments, strict=False))}
        self.run(values)
        return [values[name] for name in self.outputs]


def compile_graph(
    graph: ir.Graph, opsets: Mapping[str, int], float_type: torch.dtype | None, parameters: frozenset[str] = frozenset()
) -> Program:
    """The program of a graph, its nodes in topological order, without local functions but those with an operator.

    `parameters` are initializers that the caller holds. All operators must be known (known.py). Raises ModelError for
    a tensor in an attribute whose type torch has not.
    """
    outputs = tuple(str(value.name) for value in graph.outputs)
    steps = [_step(node, opsets, float_type) for node in graph]
    constants = {
        str(name): to_torch(value.const_value, float_type)
        for name, value in graph.initializers.items()
        if name not in parameters and value.const_value is not None
    }
    inputs = tuple(str(value.name) for value in graph.inputs if not value.is_initializer())
    return Program(inputs, outputs, freeing(steps, outputs), constants)


def _step(node: ir.Node, opsets: Mapping[str, int], float_type: torch.dtype | None) -> Step:
    domain = "" if node.domain == "ai.onnx" else node.domain
    opset = opsets.get(domain, 1)
    entry = OPERATORS[domain, node.op_type]
    attributes: dict[str, Any] = {}
    bodies: dict[str, Program] = {}
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            bodies[name] = compile_graph(attribute.as_graph(), opsets, float_type)
        elif attribute.type == ir.AttributeType.TENSOR:
            attributes[name] = to_torch(attribute.as_tensor(), float_type)
        else:
            attributes[name] = attribute.value
    types = tuple(None if value is None else value.dtype for value in node.inputs)
    count = max((place + 1 for place, value in enumerate(node.outputs) if value.name), default=0)
    return Step(
        Node(node.name or "", domain, node.op_type, opset, attributes, count, float_type, types),
        entry,
        tuple(None if value is None or not value.name else value.name for value in node.inputs),
        tuple(value.name or None for value in node.outputs),
        frozenset(str(value.name) for value in inputs_of(node)),
        bodies,
    )


def freeing(steps: Sequence[Step], outputs: Sequence[str]) -> tuple[Step, ...]:
    """The steps, each told which values made by steps before it are read by it last."""
    made = {name for step in steps for name in step.outputs if name is not None} - set(outputs)
    later: set[str] = set()
    result = []
    for step in reversed(steps):
        touched = step.reads | {name for name in step.outputs if name is not None}
        result.append(dataclasses.replace(step, free=tuple((touched & made) - later)))
        later |= touched
    return tuple(reversed(result))


def _on_one_device(arguments: list[Any], host: frozenset[int]) -> list[Any]:
    """Where one tensor is on an accelerator, all that the operator computes with go there."""
    devices = {a.device for a in arguments if isinstance(a, torch.Tensor) and a.device.type != "cpu"}
    if not devices:
        return arguments
    device = next(iter(devices))
    return [
        a.to(device) if isinstance(a, torch.Tensor) and place not in host and a.device != device else a
        for place, a in enumerate(arguments)
    ]

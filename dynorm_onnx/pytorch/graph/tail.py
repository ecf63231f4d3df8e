"""The end of a program that makes logits from rows of a stream: it can run on a few rows at a time.

Logits are by far the largest values of a language model, one number for every token and word. Who needs a sum over them
only runs the program without its tail, and the tail on one part of the tokens after the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from torch import Tensor

from dynorm_onnx.pytorch.graph.program import Program, Step, freeing

_ROW_BY_ROW = frozenset({"Add", "Sub", "Mul", "Div", "Tanh", "Cast", "Identity"})


@dataclasses.dataclass(frozen=True)
class Tail:
    """`program` makes `output`, the logits [..., V], from `source` [..., C], each row for itself.

    `parameters` are the initializers of floats that it reads.
    """

    source: str
    output: str
    program: Program
    parameters: tuple[str, ...]


def cut_tail(program: Program, parameters: Mapping[str, Tensor], output: str) -> tuple[Program, Tail] | None:
    """The program that gives out the tail's source instead of `output`, and the tail; None where there is none.

    `parameters` are initializers that the caller holds, by name. A tail is the last product with a constant matrix, and
    what is done to each element, or to each word, after it.
    """
    source = _source(program, parameters, output)
    if source is None:
        return None
    outputs = tuple(dict.fromkeys(source if name == output else name for name in program.outputs))
    before = _making(program, outputs, given=())
    after = _making(program, (output,), given=(source,))
    read = {name for step in after.steps for name in step.reads}
    return before, Tail(source, output, after, tuple(name for name in parameters if name in read))


def _source(program: Program, parameters: Mapping[str, Tensor], output: str) -> str | None:
    made = {name: step for step in program.steps for name in step.outputs if name is not None}
    vectors = {name for name, tensor in {**parameters, **program.constants}.items() if tensor.ndim <= 1}
    fixed = {*parameters, *program.constants}
    for step in program.steps:
        if step.reads <= fixed:
            fixed.update(name for name in step.outputs if name is not None)
    name = output
    while name in made and not made[name].bodies:
        step = made[name]
        moving = [value for value in step.inputs if value is not None and value not in fixed]
        if len(moving) != 1 or len(step.reads) > 3:
            return None
        if _is_product(step, moving[0]):
            return moving[0]
        others = step.reads - {moving[0]}
        if step.node.domain or step.node.op_type not in _ROW_BY_ROW or not others <= vectors:
            return None
        name = moving[0]
    return None


def _is_product(step: Step, rows: str) -> bool:
    """Of rows with a constant matrix."""
    kind = (step.node.domain, step.node.op_type)
    turned = any(step.node.get(flag, 0) for flag in ("transA", "transBatchA", "transBatchB"))
    known = kind in {("", "MatMul"), ("", "Gemm"), ("com.microsoft", "FusedMatMul")}
    return known and step.inputs[0] == rows and not turned


def _making(program: Program, outputs: tuple[str, ...], given: Iterable[str]) -> Program:
    """The steps that it takes for these outputs where `given` is there."""
    wanted, steps = {*outputs} - {*given}, []
    for step in reversed(program.steps):
        if wanted.intersection(name for name in step.outputs if name is not None):
            steps.append(step)
            wanted |= step.reads - {*given}
    inputs = (*program.inputs, *given)
    return Program(inputs, outputs, freeing(steps[::-1], outputs), program.constants)

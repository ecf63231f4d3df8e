"""A graph as blocks, one behind the other, that leave nothing but the residual stream to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from dynorm_onnx.pytorch.graph.program import Program
from dynorm_onnx.pytorch.graph.segments import Segment
from dynorm_onnx.pytorch.graph.weights import Weights


@dataclasses.dataclass(frozen=True)
class Block:
    """Steps `start` to before `stop`; `border` is the stream behind them.

    `weights` are the learned initializers that these steps alone read, tables left out.
    """

    start: int
    stop: int
    border: str
    weights: frozenset[str]


def blocks(
    program: Program, segments: Sequence[Segment], weights: Weights, borders: Collection[str]
) -> tuple[Block, ...]:
    """The segments, put together so that each leaves one value, one of `borders`, and has weights.

    What comes after the last such border belongs to no block.
    """
    found: list[Block] = []
    start = 0
    for segment in segments[:-1]:
        left = _left(program, segment.stop, weights)
        if len(left) != 1 or left[0] not in borders:
            continue
        own = _own(program, start, segment.stop, weights)
        if own - weights.tables:
            found.append(Block(start, segment.stop, left[0], own - weights.tables))
            start = segment.stop
    return tuple(found)


def _left(program: Program, stop: int, weights: Weights) -> list[str]:
    """The activations that steps before `stop` leave to those behind."""
    made = {name for step in program.steps[:stop] for name in step.outputs if name in weights.activations}
    return sorted(made & {name for step in program.steps[stop:] for name in step.reads})


def _own(program: Program, start: int, stop: int, weights: Weights) -> frozenset[str]:
    inside = {name for step in program.steps[start:stop] for name in step.reads}
    outside = {name for step in (*program.steps[:start], *program.steps[stop:]) for name in step.reads}
    return frozenset((inside - outside) & weights.learned)

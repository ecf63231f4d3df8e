"""Where a program is cut for activation checkpointing: at the places where the fewest activations are alive."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from dynorm_onnx.pytorch.graph.program import Program

SHORTEST = 8  # steps; shorter segments save nothing worth the call


@dataclasses.dataclass(frozen=True)
class Segment:
    """Steps `start` to before `stop`, the values of steps before that they read, and what they leave to later ones.

    `free` are values from before that nothing reads after the segment.
    """

    start: int
    stop: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    free: tuple[str, ...]


def segments(program: Program, activations: Collection[str]) -> tuple[Segment, ...]:
    """The program cut where at most one activation is alive (the residual stream, in a transformer)."""
    steps = program.steps
    made_at = {name: place for place, step in enumerate(steps) for name in step.outputs if name is not None}
    last_read: dict[str, int] = {}
    for place, step in enumerate(steps):
        last_read.update(dict.fromkeys(step.reads, place))
    # What is given out is there at the end wherever the cuts are: only its readers count for them.
    cuts = [0, *_cuts(program, {n: (made_at[n], last_read.get(n, -1)) for n in activations if n in made_at})]
    last_use = {**last_read, **dict.fromkeys(program.outputs, len(steps))}
    borders = list(zip(cuts, [*cuts[1:], len(steps)], strict=True))
    result = []
    for start, stop in borders:
        read = {name for step in steps[start:stop] for name in step.reads}
        made = {name for step in steps[start:stop] for name in step.outputs if name is not None}
        inputs = tuple(sorted(name for name in read - made))
        outputs = tuple(sorted(name for name in made if last_use.get(name, -1) >= stop))
        free = tuple(name for name in inputs if name in made_at and last_use[name] < stop)
        result.append(Segment(start, stop, inputs, outputs, free))
    return tuple(result)


def _cuts(program: Program, lives: dict[str, tuple[int, int]]) -> list[int]:
    """Places before which to cut."""
    alive = [0] * (len(program.steps) + 1)
    for first, last in lives.values():
        for place in range(first + 1, min(last, len(program.steps)) + 1):
            alive[place] += 1
    cuts: list[int] = []
    for place in range(1, len(program.steps)):
        if alive[place] == 1 and place - (cuts[-1] if cuts else 0) >= SHORTEST:
            cuts.append(place)
    return cuts

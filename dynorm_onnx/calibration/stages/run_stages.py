"""Run two models side by side, stage by stage, solving one point after each stage.

Each node of the original runs once per batch, each node of the converted model too: the activations
alive at a cut are kept, so nothing is ever computed from the start again.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.stages.held_out import HeldOut
from dynorm_onnx.calibration.stages.plan import Plan, SolvePoint, Stage, make_plan
from dynorm_onnx.errors import ModelError
from dynorm_onnx.graph.edit.pieces import part_of_model
from dynorm_onnx.runtime.activations import ActivationStore
from dynorm_onnx.runtime.arrays import Feeds
from dynorm_onnx.runtime.pieces import open_for_batches, run_batches

log = logging.getLogger(__name__)

MEMORY_LIMIT = 4 << 30
"""Bytes of activations that are kept in memory before they go to memory-mapped files."""


@dataclasses.dataclass(frozen=True)
class Activations:
    """One batch of the values that a point asked for, by name, each [..., C] as the model made it."""

    original: dict[str, np.ndarray]
    converted: dict[str, np.ndarray]
    token_weights: np.ndarray | None  # [batch, length], see weights.py
    held_out: HeldOut | None = None


def require_pairs(name: str, original: np.ndarray, converted: np.ndarray) -> None:
    """Raises ModelError where two arrays cannot be compared row by row."""
    if original.shape != converted.shape:
        raise ModelError(
            f"{name}: its tokens cannot be paired by position, for there are as many as values say: its shape is "
            f"{list(original.shape)} in the original and {list(converted.shape)} in the converted model; "
            "--keep the norms from there on"
        )


class StageRunner:
    """The two models at the cut before one point, for all batches.

    Use it as `for point in runner.points(): ...`; inside the loop `activations()` may be read as often
    as the solver likes, and the solver must change the converted model's nodes of that point before
    the loop goes on. Value names must be the same in both models.
    """

    def __init__(
        self,
        original: ir.Model,
        converted: ir.Model,
        points: Sequence[SolvePoint],
        batches: Sequence[Feeds],
        *,
        token_weights: Sequence[np.ndarray | None] = (),
        held_out: Sequence[HeldOut | None] = (),
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        self._models = {"original": original, "converted": converted}
        self._batches = batches
        self._token_weights = token_weights or [None] * len(batches)
        self._held_out = held_out or [None] * len(batches)
        self._plan: Plan = make_plan(original.graph, points)
        self._stores = {name: ActivationStore(memory_limit // 2) for name in self._models}
        self._stage = 0

    def __enter__(self) -> StageRunner:
        return self

    def __exit__(self, *_: object) -> None:
        for store in self._stores.values():
            store.close()

    def points(self, progress: Callable[[int, int], None] | None = None) -> Iterator[SolvePoint]:
        """Each point in graph order, when all that leads to it has been run in both models."""
        total = len(self._plan.points)
        for stage, point in enumerate(self._plan.points):
            self._stage = stage
            self._run("original", self._plan.original[self._stage])
            self._run("converted", self._plan.converted[self._stage])
            yield point
            self._drop("original", self._plan.last_use_original)
            self._drop("converted", self._plan.last_use_converted)
            if progress is not None:
                progress(self._stage + 1, total)

    def activations(self) -> Iterator[Activations]:
        """What the current point asked for, batch by batch. Raises ModelError where a value that was asked of both
        models has another shape in the converted one."""
        point = self._plan.points[self._stage]
        for batch in range(len(self._batches)):
            original = {name: self._value("original", batch, name) for name in point.original}
            converted = {name: self._value("converted", batch, name) for name in point.converted}
            for name in original.keys() & converted.keys():
                require_pairs(name, original[name], converted[name])
            yield Activations(original, converted, self._token_weights[batch], self._held_out[batch])

    def _run(self, which: str, stage: Stage) -> None:
        if not stage.outputs:
            return
        # What only a norm that was replaced has read is gone: a weight made at run time, as long as x.
        there = ir.convenience.create_value_mapping(self._models[which].graph)
        inputs = [name for name in stage.inputs if name in there]
        # In pieces where a stage is large: the first one leads through all norms that are kept.
        model = open_for_batches(part_of_model(self._models[which], inputs, stage.outputs), arena=True)
        feeds = [{name: self._value(which, batch, name) for name in inputs} for batch in range(len(self._batches))]
        for batch, made in enumerate(run_batches(model, feeds)):
            for name, array in made.items():
                self._stores[which].put(batch, name, array)

    def _value(self, which: str, batch: int, name: str) -> np.ndarray:
        """From the feeds, or from the model's own stages, or (values of stage 0) from the original's."""
        if name in self._batches[batch]:
            return self._batches[batch][name]
        try:
            return self._stores[which].get(batch, name)
        except KeyError:
            return self._stores["original"].get(batch, name)

    def _drop(self, which: str, last_use: dict[str, int]) -> None:
        for name, stage in last_use.items():
            if stage == self._stage:
                self._stores[which].drop(name)

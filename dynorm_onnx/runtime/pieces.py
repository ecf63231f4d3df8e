"""Run a model that is too large to be held in memory: piece by piece, one piece's session at a time.

On the CPU ONNX Runtime widens float16 weights to float32 and packs them anew, so that a session of a model of
n bytes may hold two to four times as much; to compare two models side by side takes that twice.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.model_io import load, prepare
from dynorm_onnx.graph.pieces import cut_by_weights, part_of_model, weight_bytes
from dynorm_onnx.runtime.arrays import Feeds, feed_value, fetch_value, run
from dynorm_onnx.runtime.session import Provider, make_session

log = logging.getLogger(__name__)

WHOLE_LIMIT = 1 << 30
"""Bytes of weights up to which a model is run whole."""

PIECE_LIMIT = 256 << 20
"""Bytes of weights of one piece."""


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output as ONNX Runtime describes it; free sizes are strings, or None without a name."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]

    @classmethod
    def of(cls, value: ir.Value) -> Port:
        """The port of a value of the main graph."""
        kind = "undefined" if value.dtype is None else value.dtype.name.lower()
        sizes = tuple(size if isinstance(size, int) else size.value for size in value.shape or ())
        return cls(str(value.name), f"tensor({kind})", sizes)


def open_model(
    model: str | os.PathLike[str] | ir.Model,
    *,
    provider: Provider = "cpu",
    limit: int = WHOLE_LIMIT,
    spinning: bool = True,
    arena: bool = True,
) -> Any:
    """An InferenceSession of the model, or a PiecewiseModel where its weights are more than `limit` bytes.

    `spinning` and `arena` are make_session()'s. Raises what make_session() raises.
    """
    loaded = model if isinstance(model, ir.Model) else prepare(load(model))  # pieces need the types of values
    size = weight_bytes(loaded)
    if size <= limit:
        return make_session(model, provider=provider, spinning=spinning, arena=arena)
    log.info("%d MiB of weights: the model is run piece by piece", size >> 20)
    return PiecewiseModel(loaded, provider=provider)


class PiecewiseModel:
    """Runs a model with the weights of one piece in memory at a time; each run loads all pieces in turn.

    It has what arrays.run() asks of an InferenceSession. The model must not be changed meanwhile.
    """

    def __init__(self, model: ir.Model, *, provider: Provider = "cpu", limit: int = PIECE_LIMIT) -> None:
        self._model, self._provider = model, provider
        self._pieces = cut_by_weights(model.graph, limit)

    def get_inputs(self) -> list[Port]:
        """The model's inputs, weights left out."""
        return [Port.of(value) for value in self._model.graph.inputs if not value.is_initializer()]

    def get_outputs(self) -> list[Port]:
        """The model's outputs."""
        return [Port.of(value) for value in self._model.graph.outputs]

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of these names, by default all. Raises ValueError where an input has no feed, as ONNX Runtime's
        sessions do, else what arrays.run() raises."""
        missing = [port.name for port in self.get_inputs() if port.name not in feeds]
        if missing:
            raise ValueError(f"required inputs {missing} are missing from the feeds")
        wanted = [port.name for port in self.get_outputs()] if names is None else list(names)
        alive: Feeds = dict(feeds)
        for number, piece in enumerate(self._pieces):
            session = make_session(part_of_model(self._model, piece.inputs, piece.outputs), provider=self._provider)
            alive |= run(session, {name: alive[name] for name in piece.inputs})
            del session
            needed = {*wanted, *(name for later in self._pieces[number + 1 :] for name in later.inputs)}
            alive = {name: array for name, array in alive.items() if name in needed}
        return [alive[name] for name in wanted]

    def run_with_ort_values(self, names: Sequence[str], values: Mapping[str, Any]) -> list[Any]:
        """run() with ONNX Runtime's own tensors, which also hold types that numpy lacks."""
        arrays = self.run(names, {name: fetch_value(value) for name, value in values.items()})
        return [feed_value(array) for array in arrays]

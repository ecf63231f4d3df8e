"""Run a model that is too large to be held in memory: piece by piece, one piece's session at a time.

On the CPU ONNX Runtime widens float16 weights to float32 and packs them anew, so that a session of a model of
n bytes may hold two to four times as much; to compare two models side by side takes that twice.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.edit.pieces import Piece, cut_by_weights, part_of_model, weight_bytes
from dynorm_onnx.graph.files.model_io import load, prepare
from dynorm_onnx.runtime.activations import ActivationStore
from dynorm_onnx.runtime.arrays import Feeds, feed_value, fetch_value, run
from dynorm_onnx.runtime.session import Provider, make_session
from dynorm_onnx.runtime.value_types import value_types

log = logging.getLogger(__name__)

WHOLE_LIMIT = 1 << 30
"""Bytes of weights up to which a model is run whole where it is run again and again."""

BATCHES_LIMIT = 256 << 20
"""The same where all that is to be run is known beforehand, so that pieces cost no time, on the processor."""

PIECE_LIMIT = 64 << 20
"""Bytes of weights of one piece."""

ACTIVATIONS_LIMIT = 1 << 29
"""Bytes of activations between two pieces that are kept in memory before they go to files."""

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


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
    arena: bool = True,
    **options: Any,
) -> Any:
    """An InferenceSession of the model, or a PiecewiseModel where its weights are more than `limit` bytes.

    `arena` and further options are make_session()'s. Raises what make_session() raises.
    """
    size = weight_bytes(model) if isinstance(model, ir.Model) else _weight_bytes_of_file(model)
    if size <= limit:
        return make_session(model, provider=provider, arena=arena, **options)
    log.info("%d MiB of weights: the model is run piece by piece", size >> 20)
    typed = model if isinstance(model, ir.Model) else prepare(load(model), value_types)  # pieces need types of values
    return PiecewiseModel(typed, provider=provider, **options)


def _weight_bytes_of_file(path: str | os.PathLike[str]) -> int:
    """weight_bytes() of the model in a file. A conversion opens its original again and again."""
    try:
        status = os.stat(path)
    except OSError:
        return weight_bytes(load(path))  # says what is wrong with it
    return _weight_bytes_as_of(os.path.abspath(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache
def _weight_bytes_as_of(path: str, modified: int, size: int) -> int:
    return weight_bytes(load(path))


def open_for_batches(model: str | os.PathLike[str] | ir.Model, *, provider: Provider = "cpu", **options: Any) -> Any:
    """What open_model() gives, for run_batches(): two models side by side then need not be in memory whole."""
    limit = BATCHES_LIMIT if provider == "cpu" else WHOLE_LIMIT
    return open_model(model, provider=provider, limit=limit, **options)


def run_batches(
    model: Any,
    batches: Sequence[Feeds],
    outputs: Sequence[str] | None = None,
    ran: Callable[[], None] = lambda: None,
) -> Iterator[Feeds]:
    """The outputs (of these names, by default all) for each batch, one after the other.

    `model` is an InferenceSession, or a PiecewiseModel: the session of each of its pieces is made once and runs all
    batches. `ran` is called after each of count_runs() runs. Raises what arrays.run() raises.
    """
    if isinstance(model, PiecewiseModel | Recorded):
        yield from model.run_batches(batches, outputs, ran)
        return
    for feeds in batches:
        made = run(model, feeds, outputs)
        ran()
        yield made


def count_runs(model: Any, batches: int) -> int:
    """How many runs of sessions run_batches() makes of so many batches."""
    if isinstance(model, Recorded):
        return 0 if model.is_known else count_runs(model.model, batches)
    return batches * (model.pieces if isinstance(model, PiecewiseModel) else 1)


class Recorded:
    """A model that is run once and then answers from memory: for one original that many models are compared with.

    Every call of run_batches() must be of the same batches.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._outputs: list[Feeds] | None = None

    @property
    def is_known(self) -> bool:
        """Whether the model has been run."""
        return self._outputs is not None

    def get_inputs(self) -> list[Any]:
        """The model's inputs."""
        return self.model.get_inputs()

    def get_outputs(self) -> list[Any]:
        """The model's outputs."""
        return self.model.get_outputs()

    def run_batches(
        self, batches: Sequence[Feeds], outputs: Sequence[str] | None, ran: Callable[[], None]
    ) -> Iterator[Feeds]:
        """See run_batches() of this module."""
        if self._outputs is None:
            self._outputs = list(run_batches(self.model, batches, outputs, ran))
        yield from (dict(outputs) for outputs in self._outputs)


class PiecewiseModel:
    """Runs a model with the weights of one piece in memory at a time; each run loads all pieces in turn.

    It has what arrays.run() asks of an InferenceSession. The model must not be changed meanwhile.
    """

    def __init__(
        self, model: ir.Model, *, provider: Provider = "cpu", limit: int | None = None, **options: Any
    ) -> None:
        self._model, self._provider, self._options = model, provider, options
        self._pieces = cut_by_weights(model.graph, PIECE_LIMIT if limit is None else limit)

    @property
    def pieces(self) -> int:
        """How many pieces there are."""
        return len(self._pieces)

    def get_inputs(self) -> list[Port]:
        """The model's inputs, weights left out."""
        return [Port.of(value) for value in self._model.graph.inputs if not value.is_initializer()]

    def get_outputs(self) -> list[Port]:
        """The model's outputs."""
        return [Port.of(value) for value in self._model.graph.outputs]

    def run_batches(
        self, batches: Sequence[Feeds], outputs: Sequence[str] | None = None, ran: Callable[[], None] = lambda: None
    ) -> Iterator[Feeds]:
        """See run_batches() of this module. Raises ValueError where an input has no feed, as ONNX Runtime does."""
        wanted = [port.name for port in self.get_outputs()] if outputs is None else list(outputs)
        self._require_feeds(batches)
        *firsts, last = self._pieces
        with ActivationStore(ACTIVATIONS_LIMIT) as store:

            def value(batch: int, name: str) -> np.ndarray:
                return batches[batch][name] if name in batches[batch] else store.get(batch, name)

            for number, piece in enumerate(firsts):
                session = self._session(piece)
                for batch in range(len(batches)):
                    made = run(session, {name: value(batch, name) for name in piece.inputs})
                    for name, array in made.items():
                        store.put(batch, name, array)
                    ran()
                del session
                needed = {*wanted, *(name for later in self._pieces[number + 1 :] for name in later.inputs)}
                for name in set(piece.inputs) - needed:
                    store.drop(name)
            session = self._session(last)
            for batch in range(len(batches)):
                made = run(session, {name: value(batch, name) for name in last.inputs})
                ran()
                yield {name: made[name] if name in made else value(batch, name) for name in wanted}

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of these names, by default all. Raises ValueError where an input has no feed, as ONNX Runtime's
        sessions do, else what arrays.run() raises."""
        (outputs,) = self.run_batches([dict(feeds)], names)
        return list(outputs.values())

    def run_with_ort_values(self, names: Sequence[str], values: Mapping[str, Any]) -> list[Any]:
        """run() with ONNX Runtime's own tensors, which also hold types that numpy lacks."""
        arrays = self.run(names, {name: fetch_value(value) for name, value in values.items()})
        return [feed_value(array) for array in arrays]

    def _session(self, piece: Piece) -> Any:
        part = part_of_model(self._model, piece.inputs, piece.outputs)
        packed = not _is_of_one_large_weight(part)
        return make_session(part, provider=self._provider, arena=False, prepacking=packed, **self._options)

    def _require_feeds(self, batches: Sequence[Feeds]) -> None:
        for feeds in batches:
            missing = [port.name for port in self.get_inputs() if port.name not in feeds]
            if missing:
                raise ValueError(f"required inputs {missing} are missing from the feeds")


def _is_of_one_large_weight(part: ir.Model) -> bool:
    """Whether a piece is as large as it is for one weight of floats, as a rule that of the logits. Those of two models
    are in memory at once where they are compared. (Quantised ones are computed with otherwise if they are not packed.)
    """
    tensors = [value.const_value for value in part.graph.initializers.values() if value.const_value is not None]
    largest = max(tensors, key=lambda tensor: tensor.nbytes, default=None)
    return largest is not None and largest.nbytes > PIECE_LIMIT and largest.dtype in _FLOATS

"""What a conversion is calibrated, validated and timed on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dynorm_onnx.calibration.checkpoint import Checkpoint, digest_of
from dynorm_onnx.calibration.data import CalibrationData, load_calibration
from dynorm_onnx.errors import DataError
from dynorm_onnx.runtime.memory import require_memory, session_bytes
from dynorm_onnx.runtime.pieces import open_for_batches
from dynorm_onnx.runtime.session import FATAL, Provider, make_session


@dataclasses.dataclass(frozen=True)
class DataWanted:
    """The knobs of the data; the command line's options by the same names."""

    path: Path  # of the model
    data: Any
    tokenizer: Path | None
    samples: int
    max_length: int
    seed: int
    provider: Provider


def load_data(
    wanted: DataWanted, prepared: ir.Model, checkpoint: Checkpoint, progress: Callable[[int, int], None]
) -> CalibrationData:
    """Data to fit to, of which the checkpoint then is; raises what load_calibration() raises."""
    data = _loaded(wanted, prepared, checkpoint, progress, drawn=False)
    checkpoint.require(data=digest_of(data.calibration))
    return data


def load_proof(
    wanted: DataWanted, prepared: ir.Model, progress: Callable[[int, int], None], *, needed: bool
) -> tuple[CalibrationData | None, tuple[str, ...]]:
    """Data to prove an exact rewrite on: any input shows whether the outputs are the same.

    None, and what the user must be told, where nothing was given, nothing can be drawn and the proof is not `needed`.
    """
    try:
        return _loaded(wanted, prepared, Checkpoint(), progress, drawn=True), ()
    except DataError as error:
        if needed or wanted.data is not None:
            raise
        return None, (f"neither validated nor timed: {error}",)


def _loaded(
    wanted: DataWanted,
    prepared: ir.Model,
    checkpoint: Checkpoint,
    progress: Callable[[int, int], None],
    *,
    drawn: bool,
) -> CalibrationData:
    return load_calibration(
        prepared,
        wanted.data,
        session=functools.partial(_session_to_write_with, wanted, prepared),
        tokenizer=wanted.tokenizer,
        samples=wanted.samples,
        max_length=wanted.max_length,
        seed=wanted.seed,
        folder=wanted.path.parent,
        drawn=drawn,
        trial=lambda optimization: open_for_batches(
            wanted.path, provider=wanted.provider, optimization=optimization, log_severity=FATAL
        ),
        progress=progress,
        checkpoint=checkpoint,
    )


def _session_to_write_with(wanted: DataWanted, prepared: ir.Model) -> Any:
    """One of the whole model, for it is run once for every token."""
    if wanted.provider == "cpu":
        require_memory(session_bytes(prepared), "a session of the whole model, to write text with,", "give --data")
    return make_session(wanted.path, provider=wanted.provider)

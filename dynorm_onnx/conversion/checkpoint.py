"""Where a calibration that was cut goes on: the checkpoint of a conversion, and what must be the same for it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.checkpoint import Checkpoint
from dynorm_onnx.config import ConvertConfig
from dynorm_onnx.errors import DynormError, NoMemoryError, UsageError

_DECIDES_NOTHING = frozenset(
    {"model", "data", "output", "checkpoint", "report", "validate", "time", "dry_run", "max_kl", "max_error",
     "fold_weights", "steps", "learning_rate", "train", "block_steps"}
)  # fmt: skip
"""Knobs that change nothing of what a calibration finds at its places, or, as files, are known by what they hold. Which
norms are kept for a bound, and what a training begins with, tell its records apart."""

_PIECE = 1 << 20  # bytes that are read at a time


@contextlib.contextmanager
def going_on(config: ConvertConfig, original: ir.Model) -> Iterator[Checkpoint]:
    """The checkpoint of a conversion; one that keeps nothing where nothing is fitted.

    It is gone when the conversion has ended, well or refused, and stays where that was cut, memory did not suffice or
    the output cannot be written. `original` is the model of the config as it was loaded. Raises UsageError as
    Checkpoint does.
    """
    with _checkpoint_of(config, original) as checkpoint:
        try:
            yield checkpoint
        except (UsageError, NoMemoryError):
            raise
        except DynormError:
            checkpoint.remove()
            raise
        checkpoint.remove()


def _checkpoint_of(config: ConvertConfig, original: ir.Model) -> Checkpoint:
    if config.is_exact or int(os.environ.get("RANK", "0")) > 0:  # torchrun's first process keeps one
        return Checkpoint()
    named = config.checkpoint is not None and not config.distils
    return Checkpoint(config.calibration_path, _arguments(config, original), named=named)


def _arguments(config: ConvertConfig, original: ir.Model) -> dict[str, Any]:
    knobs = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    told = {name: _told(value) for name, value in knobs.items() if name not in _DECIDES_NOTHING}
    versions = {name: _version(name) for name in ("dynorm-onnx", "onnxruntime", "onnxruntime-gpu")}
    return {"model": _digest(config.model, original), **told, "versions": {**versions, "numpy": np.__version__}}


def _told(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, tuple):
        return [_told(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _digest(path: Path, original: ir.Model) -> str:
    """Of the model's file and of those that its weights lie in."""
    state = hashlib.blake2b(digest_size=16)
    for file in [path, *sorted(set(_weight_files(original)) - {path})]:
        with file.open("rb", buffering=0) as opened:
            while piece := opened.read(_PIECE):
                state.update(piece)
        state.update(b"|")
    return state.hexdigest()


def _weight_files(model: ir.Model) -> Iterator[Path]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield Path(value.const_value.path)

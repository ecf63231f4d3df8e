"""torch.onnx's older exporter, which traces the model to TorchScript; deprecated, and still in wide use."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from models.zoo.subject import Subject


def export(subject: Subject, folder: Path, *, opset: int) -> list[Path]:
    """Writes model.onnx at an opset (at most 20)."""
    path = folder / "model.onnx"
    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a trace does not follow, at every branch on a size
        torch.onnx.export(
            subject.module,
            subject.example,
            path,
            input_names=list(subject.inputs),
            output_names=[subject.output],
            dynamic_axes={**subject.free, subject.output: {0: "batch"}},
            opset_version=opset,
            dynamo=False,
        )
    return [path]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what C++ writes to stdout: the whole graph, at every failure."""
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)

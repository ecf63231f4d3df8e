"""One cell of the table: is the file there, are its norms found, is their exact rewrite exact, can they be replaced."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynorm_onnx.conversion.convert_model import convert_model
from dynorm_onnx.errors import DataError
from dynorm_onnx.report import Report
from dynorm_onnx.runtime.session import make_session
from models.zoo.in_pytorch import error_in_pytorch
from models.zoo.subject import Subject
from models.zoo.untyped import untyped_file

PARITY = 1e-5  # relative error of `--to rmsnorm`, float32 through a whole model
SAME_MODEL = 1e-3  # relative error of a file against PyTorch, above which the exporter wrote another model
SAMPLES, LENGTH = 4, 16  # as long as the sliding windows, or the rest of a cache would hold anything
_LONGEST_REASON = 140


class ExporterError(Exception):
    """There is no file to be converted, or it is not the model: nothing that a converter could mend."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """What was measured for one architecture and one column."""

    architecture: str
    column: str
    norms: int  # that run in PyTorch
    seconds: float
    sites: int = 0  # that were found in the files
    parity: float | None = None  # the worst relative error of `--to rmsnorm` over files and float outputs
    replaced: int = 0  # by `--to dyisru`
    in_pytorch: float | None = None  # the worst relative error of the files run by dynorm_onnx.pytorch.graph
    not_in_pytorch: str | None = None  # why it does not run them
    no_file: str | None = None  # why there is none, in the exporter's words
    failure: str | None = None  # what went wrong after the export: to be mended here

    @property
    def passes(self) -> bool:
        """Whether the exporter gave nothing, or every norm was found, exactly rewritten, and replaced."""
        if self.no_file is not None:
            return True
        exact = self.parity is not None and self.parity <= PARITY
        return self.failure is None and exact and self.sites == self.replaced == self.norms


def check(files: Sequence[Path], cell: Cell) -> Cell:
    """The cell with what converting the files gave; a failure of the converter is recorded, not raised."""
    start = time.perf_counter()
    try:
        for path in files:
            cell = _converted(path, cell)
    except Exception as error:  # whatever it is, it is a finding, and the other cells go on
        cell = dataclasses.replace(cell, failure=reason(error))
    try:
        error_there = max(error_in_pytorch(path, length=LENGTH) for path in files)
        cell = dataclasses.replace(cell, in_pytorch=error_there)
    except Exception as error:
        cell = dataclasses.replace(cell, not_in_pytorch=reason(error))
    return dataclasses.replace(cell, seconds=cell.seconds + time.perf_counter() - start)


def _converted(path: Path, cell: Cell) -> Cell:
    """Both conversions of one file, added to what the files before it gave."""
    output = path.with_suffix(".converted.onnx")
    knobs: dict[str, Any] = {"output": output, "samples": SAMPLES, "max_length": LENGTH, "time": False}
    exact = convert_model(path, to="rmsnorm", **knobs)
    replaced = _replaced(path, method="fit", **knobs)
    assert exact.validation is not None
    errors = [error.relative_error for error in exact.validation.outputs.values()]
    untyped = _replaced(untyped_file(path), method="reconstruct", **knobs)  # its stages begin at values of any node
    if len(untyped.with_status("converted")) != len(replaced.with_status("converted")):
        raise ValueError(f"without value_info {len(untyped.with_status('converted'))} norms are replaced")
    return dataclasses.replace(
        cell,
        sites=cell.sites + len(exact.with_status("converted")),
        parity=max([*errors, cell.parity or 0.0]),
        replaced=cell.replaced + len(replaced.with_status("converted")),
    )


def _replaced(path: Path, **knobs: Any) -> Report:
    """The report of a conversion, on text that the model writes or, as random weights have no real data, on noise."""
    try:
        return convert_model(path, to="dyisru", validate=False, **knobs)
    except DataError:
        return convert_model(path, to="dyisru", validate=False, data="random", **knobs)


def require_model(files: Sequence[Path], subject: Subject, *, approximate: bool) -> None:
    """Raises ExporterError where ONNX Runtime cannot load a file, or a single file is not the model.

    `approximate` files (quantised, or with other inputs than the subject's) are only loaded.
    """
    if not files:
        raise ExporterError("it wrote no file")
    try:
        sessions = [make_session(path, threads=1) for path in files]
    except Exception as error:
        raise ExporterError(reason(error)) from error
    if approximate:
        return
    feeds = {entry.name: subject.inputs[entry.name].numpy() for entry in sessions[0].get_inputs()}
    try:
        got = sessions[0].run([subject.output], feeds)[0]
    except Exception as error:
        raise ExporterError(reason(error)) from error
    with torch.no_grad():
        wanted = subject.module(*subject.example).numpy()
    difference = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    if not difference <= SAME_MODEL:
        raise ExporterError(f"the file differs from the PyTorch model by {difference:.1g}")


def reason(error: BaseException) -> str:
    """The sentence of the error at the root, short and without what differs between machines."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or type(error).__name__
    line = next(line.strip() for line in text.splitlines() if line.strip())
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "ONNX Runtime: ", line)
    line = re.sub(r"\S*/(?=[^/\s]+)", "", line)  # folders
    if isinstance(error, KeyError | NotImplementedError):
        line = f"{type(error).__name__}: {line}"
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 2].rstrip() + " …"

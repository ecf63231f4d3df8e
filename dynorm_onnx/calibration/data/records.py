"""Samples of models that take more than text, a line each: inputs by name in .jsonl files, strings in .txt files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynorm_onnx.calibration.data.arrays import as_array, samples_of, with_batch_axis
from dynorm_onnx.calibration.data.signature import InputSpec, ModelSignature
from dynorm_onnx.errors import DataError
from dynorm_onnx.runtime.arrays import Feeds

_TEXT = "text"


def takes_records(signature: ModelSignature) -> bool:
    """Whether token ids, and what can be made for them, are not all that the model must be given."""
    return signature.tokens is None or bool(signature.with_role("other") or signature.with_role("weight"))


def text_input(signature: ModelSignature) -> InputSpec | None:
    """The input that text goes to as it is: the only one that takes strings."""
    found = [spec for spec in signature.with_role("other") if spec.holds_strings and not spec.is_sequence]
    return found[0] if len(found) == 1 else None


def read_records(path: Path, signature: ModelSignature, wanted: int, rng: np.random.Generator) -> list[Feeds]:
    """Samples of a .jsonl file, lines in random order, until there are `wanted`.

    A line is an object of inputs by name, numbers or strings in lists as deep as the input has axes; that of samples
    may be left out. "text" goes to the only input that takes strings. What is no input is left aside.

    Raises DataError naming the line that is something else.
    """
    lines = path.read_bytes().splitlines()
    samples: list[Feeds] = []
    for index in rng.permutation(len(lines)):
        if lines[index].strip():
            samples += _record(lines[index], signature, f"{path}, line {index + 1}")
        if len(samples) >= wanted:
            break
    if not samples:
        raise DataError(f"{path} holds no samples")
    return samples


def read_lines(path: Path, spec: InputSpec, signature: ModelSignature, wanted: int) -> list[Feeds]:
    """The lines of a .txt file that hold anything, each a sample for an input that takes strings.

    Raises DataError for a file that is not UTF-8 or holds no text.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None
    if not lines:
        raise DataError(f"{path} holds no text")
    return [
        sample
        for line in lines[:wanted]
        for sample in samples_of({spec.name: _alone(np.asarray(line, object), spec)}, signature, str(path))
    ]


def _record(line: bytes, signature: ModelSignature, source: str) -> list[Feeds]:
    try:
        record = json.loads(line)
    except ValueError as error:  # of JSON and of UTF-8
        raise DataError(f"{source} is not JSON: {error}") from None
    specs = {spec.name: spec for spec in signature.inputs}
    text = text_input(signature)
    if text is not None:
        specs.setdefault(_TEXT, text)
    given = {name: value for name, value in record.items() if name in specs} if isinstance(record, Mapping) else {}
    if not given:
        raise DataError(f"{source} must be an object of the model's inputs by name: {', '.join(specs)}")
    arrays = {specs[name].name: _value(value, specs[name], source) for name, value in given.items()}
    return samples_of(with_batch_axis(arrays, signature), signature, source)


def _value(value: Any, spec: InputSpec, source: str) -> Any:
    if spec.is_sequence and isinstance(value, list):
        return [_array(element, spec, source) for element in value]
    return _alone(_array(value, spec, source), spec)


def _array(value: Any, spec: InputSpec, source: str) -> np.ndarray:
    try:
        array = as_array(value)
    except ValueError as error:  # lists of different lengths
        raise DataError(f"{source}: {spec.name!r} is no array: {error}") from None
    # JSON writes 1.0 as 1
    return array.astype(np.float64) if array.dtype.kind in "iu" and spec.dtype.kind not in "biuO" else array


def _alone(array: np.ndarray, spec: InputSpec) -> np.ndarray:
    """A single element, for an input that takes one for each sample, in as many axes as that has."""
    others = [dim for axis, dim in enumerate(spec.shape or ()) if axis != spec.batch_axis]
    return (
        array.reshape([1] * len(spec.shape or ()))
        if array.ndim == 0 and all(dim in (1, None) for dim in others)
        else array
    )

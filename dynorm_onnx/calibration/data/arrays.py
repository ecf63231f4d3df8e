"""Samples of ready arrays: .npz files, folders of them, and Python iterables of feeds."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynorm_onnx.calibration.data.batches import batch_size
from dynorm_onnx.calibration.data.signature import InputSpec, ModelSignature
from dynorm_onnx.errors import DataError
from dynorm_onnx.runtime.arrays import Feeds

_SAMPLES_WITHOUT_TOKENS = 8  # in one batch of images or the like


def read_npz(path: Path, signature: ModelSignature, rng: np.random.Generator) -> list[Feeds]:
    """The samples of one file, in random order: arrays by input name, the first axis counts samples.

    Raises DataError for what is no .npz, holds pickled objects (they are never loaded), or does not fit.
    """
    samples = _samples(_load(path), signature, str(path))
    return [samples[index] for index in rng.permutation(len(samples))]


def read_folder(path: Path, signature: ModelSignature, wanted: int, rng: np.random.Generator) -> list[Feeds]:
    """Samples of the .npz files of a folder, files in random order, until there are `wanted`.

    Each file is one batch, or one sample without the batch axis.
    """
    files = sorted(path.glob("*.npz"))
    if not files:
        raise DataError(f"{path} holds no .npz files")
    samples: list[Feeds] = []
    for index in rng.permutation(len(files)):
        file = files[index]
        samples += _samples(_with_batch_axis(_load(file), signature), signature, str(file))
        if len(samples) >= wanted:
            break
    return samples


def read_iterable(data: Any, signature: ModelSignature, wanted: int) -> list[Feeds]:
    """Samples of an iterable of feeds, or of a CalibrationDataReader (`get_next`), until there are `wanted`.

    Raises DataError for an item that is no mapping from input names to arrays.
    """
    items: Iterable[Any] = iter(data.get_next, None) if hasattr(data, "get_next") else data
    samples: list[Feeds] = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping):
            raise DataError(
                f"item {number} of the data is a {type(item).__name__}, not a dict of arrays by input name"
            )
        batch = {str(name): np.asarray(array) for name, array in item.items()}
        samples += _samples(batch, signature, f"item {number} of the data")
        if len(samples) >= wanted:
            break
    if not samples:
        raise DataError("the data is empty")
    return samples


def join_samples(samples: Iterable[Feeds], signature: ModelSignature) -> list[Feeds]:
    """Join samples of equal shapes and types to batches of bounded size; where the size is fixed, none."""
    axes = {spec.name: spec.batch_axis for spec in signature.inputs}
    alike: dict[Any, list[Feeds]] = {}
    for number, sample in enumerate(samples):
        if signature.fixed_batch is not None or all(axes[name] is None for name in sample):
            alike[number] = [sample]
        else:
            alike.setdefault(_kind_of(sample, axes), []).append(sample)
    batches: list[Feeds] = []
    for group in alike.values():
        size = _batch_size(group[0], signature)
        batches += [_joined(group[start : start + size], axes) for start in range(0, len(group), size)]
    return batches


def _kind_of(sample: Feeds, axes: dict[str, int | None]) -> Any:
    """What two samples must have in common to go in one batch."""
    return tuple(
        (name, array.dtype.str, array.shape, array.tobytes() if axes[name] is None else None)
        for name, array in sorted(sample.items())
    )


def _batch_size(sample: Feeds, signature: ModelSignature) -> int:
    tokens = signature.tokens
    if tokens is not None and tokens.name in sample:
        return batch_size(signature, max(1, sample[tokens.name].shape[-1]))
    return _SAMPLES_WITHOUT_TOKENS


def _joined(samples: list[Feeds], axes: dict[str, int | None]) -> Feeds:
    joined = dict(samples[0])
    for name, axis in axes.items():
        if name in joined and axis is not None:
            joined[name] = np.concatenate([sample[name] for sample in samples], axis=axis)
    return joined


def _load(path: Path) -> Feeds:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is a single array, not an .npz of arrays by input name")
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an .npz of plain arrays: {error}") from error


def _with_batch_axis(arrays: Feeds, signature: ModelSignature) -> Feeds:
    specs = {spec.name: spec for spec in signature.inputs}
    whole = dict(arrays)
    for name, array in arrays.items():
        spec = specs.get(name)
        if spec is not None and spec.batch_axis is not None and array.ndim == len(spec.shape or ()) - 1:
            whole[name] = np.expand_dims(array, spec.batch_axis)
    return whole


def _samples(arrays: Feeds, signature: ModelSignature, source: str) -> list[Feeds]:
    """Cut arrays in samples that keep their batch axis, of the size that the model fixes, else of 1."""
    specs = {spec.name: spec for spec in signature.inputs}
    parts: dict[str, list[np.ndarray]] = {}
    for name, array in arrays.items():
        if name not in specs:
            raise DataError(f"{source} has {name!r}, but the model's inputs are {', '.join(specs)}")
        cut = _cut(array, specs[name], signature.fixed_batch or 1)
        if cut is not None:
            parts[name] = cut
    counts = {name: len(cut) for name, cut in parts.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise DataError(f"{source} has different numbers of samples: {listed}")
    shared = {name: array for name, array in arrays.items() if name not in parts}
    return [
        shared | {name: cut[index] for name, cut in parts.items()}
        for index in range(min(counts.values(), default=1))
    ]


def _cut(array: np.ndarray, spec: InputSpec, size: int) -> list[np.ndarray] | None:
    """Views of `size` samples each along the batch axis; None for what is the same for all samples.

    An array of one axis more than its input counts whole feeds in its first axis.
    """
    rank = array.ndim if spec.shape is None else len(spec.shape)
    if array.ndim == rank + 1:
        return list(array)
    axis = spec.batch_axis
    if axis is None or array.ndim != rank:
        return None  # `fitted` has the word on what does not fit
    whole = array.shape[axis] // size
    return [array.take(range(index * size, (index + 1) * size), axis) for index in range(whole)]

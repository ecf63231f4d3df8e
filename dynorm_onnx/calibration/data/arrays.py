"""Samples of ready arrays: .npz files, folders of them, .jsonl files of inputs by name, Python iterables of feeds."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynorm_onnx.calibration.data.batches import batch_size
from dynorm_onnx.calibration.data.fitting import of_strings
from dynorm_onnx.calibration.data.signature import InputSpec, ModelSignature
from dynorm_onnx.errors import DataError
from dynorm_onnx.runtime.arrays import Feeds

_SAMPLES_WITHOUT_TOKENS = 8  # in one batch of images or the like


def read_npz(path: Path, signature: ModelSignature, rng: np.random.Generator) -> list[Feeds]:
    """The samples of one file, in random order: arrays by input name, the first axis counts samples.

    Of a model that takes sequences the file is one sample: an array holds the tensors of a sequence along its first
    axis, and the others are fed as they are.

    Raises DataError for what is no .npz, holds pickled objects (they are never loaded), or does not fit.
    """
    samples = samples_of(_load(path, signature), signature, str(path))
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
        samples += samples_of(with_batch_axis(_load(file, signature), signature), signature, str(file))
        if len(samples) >= wanted:
            break
    return samples


def read_iterable(data: Any, signature: ModelSignature, wanted: int) -> list[Feeds]:
    """Samples of an iterable of feeds, or of a CalibrationDataReader (`get_next`), until there are `wanted`.

    Arrays may be whatever numpy reads, tensors of PyTorch too; a sequence is a list of them.

    Raises DataError for an item that is no mapping from input names to arrays.
    """
    items = iter(data.get_next, None) if hasattr(data, "get_next") else data
    if not isinstance(items, Iterable):
        raise DataError(
            f"a {type(data).__name__} is no data: expected a path, an iterable of feeds or a CalibrationDataReader"
        )
    samples: list[Feeds] = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping):
            raise DataError(f"item {number} of the data is a {type(item).__name__}, not a dict of arrays by input name")
        source = f"item {number} of the data"
        batch = {str(name): _given(str(name), array, signature, source) for name, array in item.items()}
        samples += samples_of(batch, signature, source)
        if len(samples) >= wanted:
            break
    if not samples:
        raise DataError("the data is empty")
    return samples


def _given(name: str, value: Any, signature: ModelSignature, source: str) -> Any:
    """An array of what was given for an input; of a sequence the list of its arrays."""
    try:
        if any(spec.is_sequence for spec in signature.inputs if spec.name == name):
            return [as_array(element) for element in value]
        return as_array(value)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: of a tensor of PyTorch
        raise DataError(f"{source} has a {type(value).__name__} for {name!r}, which is no array: {error}") from error


def as_array(value: Any) -> np.ndarray:
    """Whatever numpy reads as an array, and tensors of PyTorch wherever they lie and whatever trains them.

    Strings become Python's. A type that numpy lacks becomes float32, which holds every bfloat16.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        try:
            return np.asarray(value)
        except TypeError:
            return np.asarray(value.float())
    array = np.asarray(value)
    texts = of_strings(array) if array.dtype.kind in "US" else None
    return array if texts is None else texts


def join_samples(samples: Iterable[Feeds], signature: ModelSignature) -> list[Feeds]:
    """Join samples of equal shapes and types to batches of bounded size; where the size is fixed, none."""
    axes = {spec.name: spec.batch_axis for spec in signature.inputs}
    alike: dict[Any, list[Feeds]] = {}
    for number, sample in enumerate(samples):
        alone = signature.fixed_batch is not None or signature.takes_feeds_whole
        if alone or all(axes[name] is None for name in sample):
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
        (name, array.dtype.str, array.shape, _content(array) if axes[name] is None else None)
        for name, array in sorted(sample.items())
    )


def _content(array: np.ndarray) -> Any:
    return tuple(array.flat) if array.dtype == object else array.tobytes()


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


def _load(path: Path, signature: ModelSignature) -> Feeds:
    name = ""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single array, not an .npz of arrays by input name")
        with file:
            loaded = {}
            for name in file.files:
                loaded[name] = _given(name, file[name], signature, str(path))
            return loaded
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        hint = f" ({name!r}: save strings with dtype=str)" if "pickle" in str(error) and name else ""
        raise DataError(f"{path} cannot be read as an .npz of plain arrays: {error}{hint}") from error


def with_batch_axis(arrays: Feeds, signature: ModelSignature) -> Feeds:
    """Arrays that each hold one sample without the batch axis, with it; others stay as they are."""
    specs = {spec.name: spec for spec in signature.inputs}
    whole = dict(arrays)
    for name, array in arrays.items():
        spec = specs.get(name)
        if spec is None or spec.batch_axis is None:
            continue
        if array.ndim == len(spec.shape or ()) - 1:
            whole[name] = np.expand_dims(array, spec.batch_axis)
    return whole


def samples_of(arrays: Feeds, signature: ModelSignature, source: str) -> list[Feeds]:
    """Cut arrays in samples that keep their batch axis, of the size that the model fixes, else of 1.

    Feeds with a sequence stay whole, as do those of exactly the model's sizes.

    Raises DataError, naming `source`, for what the model does not have and where arrays differ in their number of
    samples.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    unknown = next((name for name in arrays if name not in specs), None)
    if unknown is not None:
        raise DataError(f"{source} has {unknown!r}, but the model's inputs are {', '.join(specs)}")
    if signature.takes_feeds_whole or all(array.shape == specs[name].shape for name, array in arrays.items()):
        return [arrays]  # what has exactly the model's sizes is one run of it, whatever the axes mean
    size = signature.fixed_batch or 1
    lengths: dict[str, int] = {}
    for name, array in arrays.items():
        axis = _sample_axis(specs[name], array)
        if axis is not None:
            lengths[name] = array.shape[axis]
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{count} of {name!r}" for name, count in lengths.items())
        raise DataError(f"{source} has different numbers of samples: {listed}")
    count = next(iter(lengths.values()), size)
    if count == 0:
        raise DataError(f"{source} holds no samples")
    if count < size:
        raise DataError(f"{source} holds {count} samples, fewer than the {size} that the model takes at once")
    return [
        {name: _part(array, specs[name], start, size) for name, array in arrays.items()}
        for start in range(0, count - size + 1, size)
    ]


def _sample_axis(spec: InputSpec, array: np.ndarray) -> int | None:
    """The axis of an array that counts samples; None where all samples share it.

    That a wrong rank is no fit is for `fitted` to say.
    """
    if spec.batch_axis is None and spec.shape is not None and array.ndim == len(spec.shape) + 1:
        return 0
    return spec.batch_axis if spec.batch_axis is not None and spec.batch_axis < array.ndim else None


def _part(array: np.ndarray, spec: InputSpec, start: int, size: int) -> np.ndarray:
    """A view of `size` samples of an array; of whole feeds for a model without a batch axis, one of them."""
    axis = _sample_axis(spec, array)
    if axis is None:
        return array
    return array[start] if spec.batch_axis is None else array[(slice(None),) * axis + (slice(start, start + size),)]

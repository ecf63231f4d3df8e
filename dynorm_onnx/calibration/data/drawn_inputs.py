"""Random inputs for models that cannot write their own: drawn from the signature alone."""

from __future__ import annotations

import re

import numpy as np

from dynorm_onnx.calibration.data.signature import Dim, InputSpec, ModelSignature
from dynorm_onnx.errors import DataError
from dynorm_onnx.runtime.arrays import Feeds, is_float

# a free size, by the name that exporters give it; the first that is found decides
_FREE_SIZES = (
    (r"channel", 3),
    (r"height|width|image", 224),
    (r"feature|mel", 80),
    (r"frame|sample|time", 3000),
)
_DRAWN_ROLES = ("token_ids", "other")
_LEADING_ROLES = ("decoder_token_ids", *_DRAWN_ROLES)  # where the encoder reads no tokens that could be repeated


def draw_samples(signature: ModelSignature, rng: np.random.Generator, *, count: int, length: int) -> list[Feeds]:
    """Samples with a batch axis of the size that the model fixes, else of 1; `complete` makes the rest.

    Integers are uniform below the rows of the table that they index (0 or 1 where they index none),
    booleans true, floats standard normal, images smooth as photographs are.

    Raises DataError for an input whose number of axes the model does not say.
    """
    length = signature.fixed_length or length
    roles = _DRAWN_ROLES if signature.tokens is not None else _LEADING_ROLES
    drawn = [spec for spec in signature.inputs if spec.role in roles]
    shared = {spec.name: _draw(spec, signature, length, rng) for spec in drawn if spec.batch_axis is None}
    if len(shared) == len(drawn):  # a model without a batch axis
        shared = {}
    return [
        shared | {spec.name: _draw(spec, signature, length, rng) for spec in drawn if spec.name not in shared}
        for _ in range(count)
    ]


def _sizes(spec: InputSpec, signature: ModelSignature, length: int) -> list[int]:
    if spec.shape is None:
        raise DataError(f"no data for input {spec.name!r} can be drawn: the model does not say how many axes it has")
    image = len(spec.shape) == 4 and is_float(np.empty(0, spec.dtype))
    sizes = [_size(dim, image and axis > 1, length) for axis, dim in enumerate(spec.shape)]
    if spec.batch_axis is not None and not isinstance(spec.shape[spec.batch_axis], int):
        sizes[spec.batch_axis] = signature.fixed_batch or 1
    if image and not isinstance(spec.shape[1], int):
        sizes[1] = 3
    return sizes


def _size(dim: Dim, pixels: bool, length: int) -> int:
    if isinstance(dim, int):
        return dim
    for pattern, size in _FREE_SIZES:
        if dim is not None and re.search(pattern, dim, re.IGNORECASE):
            return size
    return 224 if pixels else length


def _draw(spec: InputSpec, signature: ModelSignature, length: int, rng: np.random.Generator) -> np.ndarray:
    sizes = _sizes(spec, signature, length)
    if spec.dtype == np.bool_:
        return np.ones(sizes, bool)
    if not is_float(np.empty(0, spec.dtype)):
        return rng.integers(0, spec.bound or (256 if spec.dtype == np.uint8 else 2), sizes).astype(spec.dtype)
    noise = rng.standard_normal(sizes)
    return (_smooth(noise) if len(sizes) == 4 else noise).astype(spec.dtype)


def _smooth(noise: np.ndarray) -> np.ndarray:
    """Noise [..., height, width] with the spectrum of photographs, amplitude 1 / frequency; of variance 1."""
    height, width = noise.shape[-2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    lowest = 1 / max(height, width)
    image = np.fft.irfft2(np.fft.rfft2(noise) / np.maximum(frequency, lowest), s=(height, width))
    return image / (image.std() or 1.0)

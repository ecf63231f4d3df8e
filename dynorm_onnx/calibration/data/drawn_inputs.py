"""Random inputs for models that cannot write their own: drawn from what the model says of its inputs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.data.index_ranges import drawn_bounds
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
_DRAWN_ROLES = ("token_ids", "weight", "other")
_LEADING_ROLES = ("decoder_token_ids", *_DRAWN_ROLES)  # where the encoder reads no tokens that could be repeated
_PIXELS = 224
_MOST = 1 << 31  # elements of an input


def draw_samples(
    signature: ModelSignature, graph: ir.Graph, rng: np.random.Generator, *, count: int, length: int
) -> list[Feeds]:
    """Samples with a batch axis of the size that the model fixes, else of 1; `complete` makes the rest.

    Integers are uniform below the rows of the table that they index, computed with or not (0 or 1 where they index
    none), booleans true, floats standard normal, images smooth as photographs are. A name stands for one size in all
    inputs. What has no batch axis is drawn once for all samples, so are weights; of a model without any batch axis
    each sample is drawn by itself.

    Raises DataError for an input whose number of axes the model does not say, that takes strings or sequences, or that
    has more than 2^31 elements.
    """
    drawn, sizes, bounds = _plan(signature, graph, length)

    def draw(spec: InputSpec) -> np.ndarray:
        return _draw(spec, sizes.of(spec), bounds.get(spec.name), rng)

    batched = any(spec.batch_axis is not None for spec in drawn)
    once = [spec for spec in drawn if spec.role == "weight" or (batched and spec.batch_axis is None)]
    shared = {spec.name: draw(spec) for spec in once}
    return [shared | {spec.name: draw(spec) for spec in drawn if spec.name not in shared} for _ in range(count)]


def unbounded(signature: ModelSignature, graph: ir.Graph, length: int) -> list[str]:
    """The integer inputs of which nothing says how large their elements may be."""
    drawn, _, bounds = _plan(signature, graph, length)
    integers = [spec for spec in drawn if spec.dtype.kind in "iu" and spec.dtype != np.uint8]
    return [spec.name for spec in integers if spec.name not in bounds]


def _plan(signature: ModelSignature, graph: ir.Graph, length: int) -> tuple[list[InputSpec], _Sizes, dict[str, int]]:
    """What to draw, how large it is, and by name what integers are drawn below."""
    drawn = _drawn(signature)
    sizes = _Sizes(signature, drawn, signature.fixed_length or length)
    return drawn, sizes, drawn_bounds(graph, drawn, sizes.named)


def _drawn(signature: ModelSignature) -> list[InputSpec]:
    """The inputs to draw; DataError where one cannot be."""
    roles = _DRAWN_ROLES if signature.tokens is not None else _LEADING_ROLES
    drawn = [spec for spec in signature.inputs if spec.role in roles]
    for spec in drawn:
        why = "the model does not say how many axes it has" if spec.shape is None else None
        if spec.is_sequence or spec.holds_strings:
            why = f"it takes {spec.describe()}"
        if why is not None:
            raise DataError(f"no data for input {spec.name!r} can be drawn: {why}")
    return drawn


class _Sizes:
    """The sizes of what is drawn. Where inputs share a name, one of pixels decides for all."""

    def __init__(self, signature: ModelSignature, drawn: Sequence[InputSpec], length: int) -> None:
        self._batch = signature.fixed_batch or 1
        self._length = length
        self.named: dict[str, int] = {}
        for spec in sorted(drawn, key=lambda spec: not _is_image(spec)):
            for axis, dim in enumerate(spec.shape or ()):
                if isinstance(dim, str) and axis != spec.batch_axis:
                    self.named.setdefault(dim, self._free(spec, axis, dim))
        for spec in drawn:
            dim = (spec.shape or ())[spec.batch_axis] if spec.batch_axis is not None else None
            if isinstance(dim, str):
                self.named.setdefault(dim, self._batch)

    def of(self, spec: InputSpec) -> list[int]:
        """The sizes of one input's axes."""
        return [self._size(spec, axis, dim) for axis, dim in enumerate(spec.shape or ())]

    def _size(self, spec: InputSpec, axis: int, dim: Dim) -> int:
        if isinstance(dim, int):
            return dim
        if axis == spec.batch_axis:
            return self._batch
        return self._free(spec, axis, dim) if dim is None else self.named[dim]

    def _free(self, spec: InputSpec, axis: int, name: str | None) -> int:
        if _is_image(spec) and axis == 1:
            return 3
        for pattern, size in _FREE_SIZES:
            if name is not None and re.search(pattern, name, re.IGNORECASE):
                return size
        return _PIXELS if _is_image(spec) and axis > 1 else self._length


def _is_image(spec: InputSpec) -> bool:
    return len(spec.shape or ()) == 4 and is_float(np.empty(0, spec.dtype))


def _draw(spec: InputSpec, sizes: list[int], bound: int | None, rng: np.random.Generator) -> np.ndarray:
    if math.prod(sizes) > _MOST:
        raise DataError(f"the input {spec.name!r} of sizes {sizes} is too large to be drawn: give data (--data)")
    if spec.dtype == np.bool_:
        return np.ones(sizes, bool)
    if not is_float(np.empty(0, spec.dtype)):
        return rng.integers(0, bound or (256 if spec.dtype == np.uint8 else 2), sizes).astype(spec.dtype)
    noise = rng.standard_normal(sizes)
    return (_smooth(noise) if len(sizes) == 4 else noise).astype(spec.dtype)


def _smooth(noise: np.ndarray) -> np.ndarray:
    """Noise [..., height, width] with the spectrum of photographs, amplitude 1 / frequency; of variance 1."""
    height, width = noise.shape[-2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    lowest = 1 / max(height, width)
    image = np.fft.irfft2(np.fft.rfft2(noise) / np.maximum(frequency, lowest), s=(height, width))
    return image / (image.std() or 1.0)

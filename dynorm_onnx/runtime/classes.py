"""Which outputs tell classes, and for how many samples a conversion changes the class.

An output [batch, n] may as well be an embedding, whose largest channel means nothing: it is told by its name and
its values.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from dynorm_onnx.runtime.arrays import is_float

Telling = Literal["scores", "probability"]
"""How an output tells a class: by its largest column, or by being on one side of 0.5."""

_NO_CLASSES = ("embed", "pool", "hidden", "state", "feature", "vector", "encod", "mean", "norm", "tanh")
_UNIT_LENGTH = 1e-3  # how far from 1 the length of a normalised embedding may be


def tells_classes(name: str, array: np.ndarray, samples: int) -> Telling | None:
    """How the output `name` of one batch of so many samples tells classes; None where it does not seem to.

    [samples, 1] within 0 and 1 is one probability, and so are [samples] and [samples, frames, 1]; [samples, n >= 2] are
    scores, unless the name is that of an embedding or all rows have length 1.
    """
    if not 1 <= array.ndim <= 3 or array.shape[0] != samples or not array.size or not is_float(array):
        return None
    wide = np.asarray(array, np.float64)
    if array.ndim == 1 or array.shape[-1] == 1:
        return "probability" if np.all((wide >= 0) & (wide <= 1)) else None
    if array.ndim == 3:
        return None
    if any(word in name.lower() for word in _NO_CLASSES):
        return None
    normalised = np.all(np.abs(np.linalg.norm(wide, axis=1) - 1) < _UNIT_LENGTH) and np.any(wide < 0)
    return None if normalised else "scores"


def same_classes(telling: Telling, original: np.ndarray, converted: np.ndarray) -> np.ndarray:
    """Bool [samples], or [samples x frames]: whether the class is the same; it is not where the conversion made NaN."""
    width = 1 if telling == "probability" else original.shape[-1]
    a, b = (np.asarray(array, np.float64).reshape(-1, width) for array in (original, converted))
    same = (
        (a > 0.5) == (b > 0.5) if telling == "probability" else a.argmax(1, keepdims=True) == b.argmax(1, keepdims=True)
    )
    return same[:, 0] & ~np.isnan(b).any(1)

"""Which outputs tell classes, and for how many samples a conversion changes the class.

An output [batch, n] may as well be an embedding, whose largest channel means nothing. It is told by its name, by what
makes it and reads it in the graph, and by its values; where nothing tells, by n: few embeddings have ten channels, and
a vector of scores that is judged by its direction is judged too, while no conversion keeps an embedding's largest
channel.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

from dynorm_onnx.graph.values.output_kind import OutputKind
from dynorm_onnx.runtime.arrays import is_float

Telling = Literal["scores", "probability"]
"""How an output tells a class: by its largest column, or by being on one side of 0.5."""

_SCORES = re.compile(r"logit|softmax|(^|[^a-z])probs?([^a-z]|$)|probabilit")
_VECTOR = re.compile(r"embed|pool|hidden|state|feature|vector|encod|mean|norm|tanh|sentence|latent")
_PERHAPS_SCORES = re.compile(r"score|class|label|pred")
_FEW = 10  # columns that are classes where nothing tells
_UNIT_LENGTH = 1e-3  # how far from 1 the length of a normalised embedding may be


def tells_classes(name: str, array: np.ndarray, samples: int, kind: OutputKind | None = None) -> Telling | None:
    """How the output `name` of one batch of so many samples tells classes; None where it does not seem to.

    [samples, 1] within 0 and 1 is one probability, and so are [samples] and [samples, frames, 1]; [samples, n >= 2] are
    scores where they seem to be. `kind` is what the graph tells.
    """
    if not 1 <= array.ndim <= 3 or array.shape[0] != samples or not array.size or not is_float(array):
        return None
    wide = np.asarray(array, np.float64)
    if array.ndim == 1 or array.shape[-1] == 1:
        return "probability" if np.all((wide >= 0) & (wide <= 1)) else None
    if array.ndim == 3:
        return None
    return "scores" if _are_scores(name.lower(), wide, kind) else None


def _are_scores(name: str, rows: np.ndarray, kind: OutputKind | None) -> bool:
    """What says more is asked first."""
    if _SCORES.search(name):
        return True
    normalised = np.all(np.abs(np.linalg.norm(rows, axis=1) - 1) < _UNIT_LENGTH) and np.any(rows < 0)
    if _VECTOR.search(name) or normalised:
        return False
    if kind is not None:
        return kind == "classes"
    return _PERHAPS_SCORES.search(name) is not None or rows.shape[1] <= _FEW


def same_classes(telling: Telling, original: np.ndarray, converted: np.ndarray) -> np.ndarray:
    """Bool [samples], or [samples x frames]: whether the class is the same; it is not where the conversion made NaN."""
    width = 1 if telling == "probability" else original.shape[-1]
    a, b = (np.asarray(array, np.float64).reshape(-1, width) for array in (original, converted))
    same = (
        (a > 0.5) == (b > 0.5) if telling == "probability" else a.argmax(1, keepdims=True) == b.argmax(1, keepdims=True)
    )
    return same[:, 0] & ~np.isnan(b).any(1)

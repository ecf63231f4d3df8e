"""What two runs of a model gave, compared: arrays, and what else ONNX Runtime gives out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def largest_difference(expected: Any, got: Any, of_arrays: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """`of_arrays` of two arrays of one shape; of sequences, that of the worst of their elements.

    Infinite where lengths or shapes differ; of what is no tensor, a map say, 0 where both are equal, else infinite.
    """
    if isinstance(expected, list) and isinstance(got, list):
        if len(expected) != len(got):
            return math.inf
        pairs = zip(expected, got, strict=True)
        return max((largest_difference(one, other, of_arrays) for one, other in pairs), default=0.0)
    if not isinstance(expected, np.ndarray) or not isinstance(got, np.ndarray):
        return 0.0 if expected == got else math.inf
    return of_arrays(expected, got) if expected.shape == got.shape else math.inf

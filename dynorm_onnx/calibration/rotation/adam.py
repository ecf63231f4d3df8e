"""The direction of Adam's steps (Kingma and Ba, arXiv 1412.6980), for arrays."""

from __future__ import annotations

import numpy as np


class Adam:
    """The direction for one array; `first` and `second` are the decays of its moments."""

    def __init__(self, first: float = 0.9, second: float = 0.98) -> None:
        self._decays = first, second
        self._mean: np.ndarray | float = 0.0
        self._square: np.ndarray | float = 0.0
        self._steps = 0

    def direction(self, gradient: np.ndarray) -> np.ndarray:
        """Of about 1 in every entry, float32."""
        first, second = self._decays
        self._steps += 1
        self._mean = first * self._mean + (1 - first) * gradient
        self._square = second * self._square + (1 - second) * np.square(gradient)
        mean, square = self._mean / (1 - first**self._steps), self._square / (1 - second**self._steps)
        return np.asarray(mean / (np.sqrt(square) + 1e-8), np.float32)


def cosine(step: int, steps: int, warm_up: int, least: float) -> float:
    """The share of the peak rate at a step: a warm-up, then a cosine, at least `least`."""
    return min(1.0, (step + 1) / warm_up) * max(0.5 * (1 + np.cos(np.pi * step / steps)), least)

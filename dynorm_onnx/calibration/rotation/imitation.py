"""How well functions of single channels imitate a norm in a rotated stream, and which way that gets better.

In the basis R the functions read z = s x R, s being the factor by which a token's length is off, and should give
n R, n being what the norm puts out. Their error, turned back, is e = f(z) R^T - n, and counts e G e^T. Which of the
functions f is hardly matters for R (docs/quality.md), so that it is DyISRU for all:
f(z) = w a z / sqrt(1 + (a z)^2) + b.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dynorm_onnx.calibration.rotation.tokens import NormTokens

STEEPNESS = 0.4
"""a, times how much steeper a conversion makes the functions of the norm. Functions as straight as least squares has
them would find other rotations, that suit steep ones less."""


@dataclasses.dataclass(frozen=True)
class Gradient:
    """Of the error: by R [C, C]; by w and b of each channel, [2, C]."""

    rotation: np.ndarray
    parameters: np.ndarray


class Imitation:
    """The functions that stand in for one norm; `parameters` [2, C] float32 are w and b of every channel."""

    def __init__(self, tokens: NormTokens) -> None:
        part = ~tokens.held_out if not tokens.held_out.all() else slice(None)
        self._x, self._target, self._metric = tokens.x[part], tokens.target[part], tokens.metric
        self._steepness = np.float32(STEEPNESS * tokens.steeper)
        self.parameters = np.zeros((2, self._x.shape[1]), np.float32)
        self.parameters[0] = 1 / self._steepness  # the norm's own slope

    def sampled(self, count: int, jitter: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """s x and n, [count, C] each, of tokens drawn at random; ln s is normal with the deviation `jitter`."""
        drawn = rng.integers(len(self._x), size=count)
        lengths = np.exp(jitter * rng.standard_normal(count)).astype(np.float32)
        return self._x[drawn] * lengths[:, None], self._target[drawn]

    def error(self, rotation: np.ndarray, x: np.ndarray, target: np.ndarray) -> tuple[float, Gradient]:
        """The mean of e G e^T over tokens x, target [T, C], and its gradient; R is [C, C], float32."""
        weight, bias = self.parameters
        bent = self._steepness * (x @ rotation)
        shrunk = 1 / np.sqrt(1 + bent * bent)
        core = bent * shrunk
        y = weight * core + bias
        error = y @ rotation.T - target
        weighed = error @ self._metric
        value = float(np.vdot(weighed, error)) / len(x)
        weighed *= np.float32(2 / len(x))
        by_y = weighed @ rotation
        by_z = by_y * weight * self._steepness * (shrunk * shrunk * shrunk)
        by_parameters = np.stack([(by_y * core).sum(0), by_y.sum(0)])
        return value, Gradient(weighed.T @ y + x.T @ by_z, by_parameters)

"""An element-wise function with a single scalar parameter, fitted to a norm: what the papers compare.

The norm's output before its weight and bias, y_i = x_i / rms(x), is followed by prefactor * core(x_i), the same
for all channels. Where a norm has C channels, no |y_i| exceeds sqrt(C) (sqrt(C - 1) for LayerNorm), and that is
the prefactor with which a function saturates at what the norm can reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce

import numpy as np

from dynorm_onnx.calibration.norms.moments import Moments, Range, moments_of
from dynorm_onnx.functions import Function
from dynorm_onnx.graph.norm_site import Kind

OUTLIERS = 1e-3
"""The share of a norm's elements, those of the largest |y|, that count as its outliers."""

_GRID = 64
_GOLDEN_STEPS = 60
_GOLDEN = (np.sqrt(5.0) - 1) / 2
# steepness * largest |x| on the grid: from a straight line over all data to a step.
_GENTLEST, _STEEPEST = 1e-3, 1e4


def norm_core(kind: Kind, x: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
    """The norm of x [..., C] before weight and bias, float64: x over its root mean square, or its standard score."""
    wide = np.asarray(x, np.float64)
    if kind == "layer":
        wide = wide - wide.mean(axis=-1, keepdims=True)
    return wide / np.sqrt(np.square(wide).mean(axis=-1, keepdims=True) + epsilon)


def prefactor(kind: Kind, channels: int) -> float:
    """The largest |y_i| that a norm over so many channels can put out before its weight."""
    return float(np.sqrt(channels - 1 if kind == "layer" else channels))


def gain(given: np.ndarray, wanted: np.ndarray) -> float:
    """How many times too large `given` is: the slope of the line through (wanted, given), both [N]."""
    centred = wanted - wanted.mean()
    return float((given * centred).sum() / np.square(centred).sum())


def scalars(function: Function, steepness: float) -> dict[str, np.ndarray]:
    """The function's parameters, [1] each, at this steepness and no shift."""
    return function.from_steepness(np.array([steepness]), np.zeros(1))


def fit_steepness(
    function: Function, x: np.ndarray, y: np.ndarray, scale: float, weights: np.ndarray | None = None
) -> float:
    """The steepness at which scale * core(x) is closest to y in least squares.

    Args:
        x, y: float [N], not all zero.
        scale: the prefactor.
        weights: how much each of the N counts; by default 1.
    """
    largest = float(np.abs(x).max())
    counts = np.ones(len(x)) if weights is None else weights

    def error(log_steepness: float) -> float:
        residual = scale * function.core(x, **scalars(function, float(np.exp(log_steepness)) / largest)) - y
        return float(counts @ np.square(residual))

    grid = np.linspace(np.log(_GENTLEST), np.log(_STEEPEST), _GRID)
    best = int(np.argmin([error(point) for point in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    for _ in range(_GOLDEN_STEPS):
        inner, outer = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, outer) if error(inner) <= error(outer) else (inner, high)
    return float(np.exp((low + high) / 2) / largest)


def fit_steepness_to_bins(function: Function, pooled: Moments, scale: float) -> float:
    """fit_steepness() on pooled moments, a histogram of one channel that stands for all."""
    used = pooled.count[0] > 0
    count = pooled.count[0][used]
    return fit_steepness(function, pooled.bin_means[0][used], pooled.sum_target[0][used] / count, scale, count)


def pool(parts: Iterable[tuple[np.ndarray, np.ndarray]], extent: Range) -> Moments:
    """The moments of (x, y) with all channels thrown together; `extent` is pooled_range() of every x."""
    moments: Iterator[Moments] = (moments_of(x.reshape(-1, 1), y.reshape(-1, 1), extent) for x, y in parts)
    return reduce(Moments.merge, moments)


def pooled_range(parts: Iterable[np.ndarray]) -> Range:
    """The range of all elements of arrays of x."""
    return reduce(Range.merge, (Range.of(x.reshape(-1, 1)) for x in parts))

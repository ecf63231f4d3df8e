"""Fit an element-wise function to a norm: per channel, least squares over weight and bias in closed
form inside a one-dimensional search over the steepness (beta, alpha), and over the shift if it has one.

The search is a grid, so that no local minimum is mistaken for the best, followed by golden-section
steps; all channels at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from dynorm_onnx.calibration.moments import Moments, Range
from dynorm_onnx.functions import Function, NormParameters

GRID = 48
GOLDEN_STEPS = 18
SHIFTS = np.linspace(-1.5, 1.5, 13)
# alpha * (largest |x|) on the grid: from linear over all data to saturated for all but the smallest.
GENTLEST, STEEPEST = 0.02, 300.0
CARRIED = 1e-3
"""The share of |weight| that counts as error. weight * core + bias is rounded in the model's type, and where x never
changes sign least squares would find a function whose weight and bias are millions and cancel."""
LEAST_VARIANCE = 1e-10  # of a core over its squared mean: below it is rounding, and the channel constant
_GOLDEN = (np.sqrt(5.0) - 1) / 2


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted replacement and how much of the target it leaves unexplained.

    relative_error is ||y - target|| / ||target|| over all tokens and channels that were solved with; per_channel the
    same channel by channel, [C]; held_out_error that of other tokens, None where there were none. length_errors says
    what each coupled channel brought (coupling.Chosen).
    """

    parameters: NormParameters
    relative_error: float
    per_channel: np.ndarray
    held_out_error: float | None = None
    length_errors: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Line:
    """weight, bias and the sum of squared errors they leave, [C] each."""

    weight: np.ndarray
    bias: np.ndarray
    error: np.ndarray


def fit(function: Function, moments: Moments, extent: Range, steeper: float = 1.0) -> Fit:
    """The parameters, one of each per channel, that minimise the squared error to the target.

    The steepness found is multiplied by `steeper`, and weight and bias are those of least error then.
    """
    used = extent.largest > 0
    largest = np.where(used, extent.largest, 1.0)
    x = moments.bin_means

    def line(log_steepness: np.ndarray, shift: np.ndarray) -> _Line:
        scalars = function.from_steepness(np.exp(log_steepness) / largest, shift)
        wide = {name: value[:, None] for name, value in scalars.items()}
        return _least_squares(function.core(x, **wide), moments)

    log_steepness, shift = _search(line, len(largest), has_shift=function.has_shift)
    log_steepness = log_steepness + np.log(steeper)
    best = line(log_steepness, shift)
    scalars = function.from_steepness(np.exp(log_steepness) / largest, shift)
    per_channel = np.sqrt(best.error / np.maximum(moments.target_squares, np.finfo(float).tiny))
    total = np.sqrt(best.error.sum() / max(moments.target_squares.sum(), np.finfo(float).tiny))
    return Fit(NormParameters(best.weight, best.bias, scalars), float(total), per_channel)


def _search(
    line: Callable[[np.ndarray, np.ndarray], _Line], channels: int, *, has_shift: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(log steepness, shift) per channel with the least error, by coordinates."""
    grid = np.linspace(np.log(GENTLEST), np.log(STEEPEST), GRID)
    shift = np.zeros(channels)
    steepness = _minimise(lambda s: line(s, shift).error, grid, channels)
    if has_shift:
        for _ in range(3):
            fixed = steepness
            shift = _minimise(lambda s, a=fixed: line(a, s).error, SHIFTS, channels)  # type: ignore[misc]
            moved = shift
            steepness = _minimise(lambda a, s=moved: line(a, s).error, grid, channels)  # type: ignore[misc]
    return steepness, shift


def _minimise(error: Callable[[np.ndarray], np.ndarray], grid: np.ndarray, channels: int) -> np.ndarray:
    """The minimiser of error, per channel: the best grid point, then golden section around it."""
    errors = np.stack([error(np.full(channels, value)) for value in grid])
    best = errors.argmin(0)
    low = grid[np.maximum(best - 1, 0)]
    high = grid[np.minimum(best + 1, len(grid) - 1)]
    inner, outer = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    inner_error, outer_error = error(inner), error(outer)
    for _ in range(GOLDEN_STEPS):
        left = inner_error <= outer_error
        low, high = np.where(left, low, inner), np.where(left, outer, high)
        inner, outer = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        inner_error, outer_error = error(inner), error(outer)
    found = np.where(inner_error <= outer_error, inner, outer)
    # Golden section assumes one valley; where the grid point was better after all, it stays.
    return np.where(error(found) <= errors.min(0), found, grid[best])


def _least_squares(core: np.ndarray, moments: Moments) -> _Line:
    """The best line from core [C, BINS] to the target, per channel, with centred sums.

    Errors count what the line leaves of the target's sums per bin and of its spread inside the bins.
    """
    tokens = np.maximum(moments.count.sum(1), 1.0)
    core_mean = (moments.count * core).sum(1) / tokens
    target_mean = moments.sum_target.sum(1) / tokens
    centred = core - core_mean[:, None]
    variance = (moments.count * centred**2).sum(1)
    covariance = (moments.sum_target * centred).sum(1)
    varies = variance > LEAST_VARIANCE * tokens * core_mean**2
    weight = np.divide(covariance, variance, out=np.zeros_like(variance), where=varies)
    bias = target_mean - weight * core_mean
    error = moments.target_squares - tokens * target_mean**2 - weight * covariance
    return _Line(weight, bias, np.maximum(error, 0.0) + tokens * np.square(CARRIED * weight))


def error_on(function: Function, parameters: NormParameters, moments: Moments) -> float:
    """||y - target|| / ||target|| of parameters on moments of x that were not fitted to; x with the gain, if any."""
    wide = {
        name: np.broadcast_to(value, parameters.weight.shape)[:, None] for name, value in parameters.scalars.items()
    }
    y = parameters.weight[:, None] * function.core(moments.bin_means, **wide) + parameters.bias[:, None]
    squared = (moments.count * y**2 - 2 * moments.sum_target * y).sum() + moments.target_squares.sum()
    return float(np.sqrt(max(squared, 0.0) / max(moments.target_squares.sum(), np.finfo(float).tiny)))

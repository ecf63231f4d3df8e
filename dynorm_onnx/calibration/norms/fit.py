"""Fit an element-wise function to a norm: per channel, least squares over weight and bias in closed
form inside a one-dimensional search over the steepness (beta, alpha), and over the shift if it has one.

The search is a grid, so that no local minimum is mistaken for the best, followed by golden-section
steps; all channels at once. What is found is held to what a file can carry: the parameters are rounded to its types,
and a weight is bounded, by what its rounding costs and by what the function then gives where no token has been.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import ml_dtypes
import numpy as np

from dynorm_onnx.calibration.norms.moments import Moments, Range
from dynorm_onnx.functions import Function, NormParameters

GRID = 48
GOLDEN_STEPS = 18
SHIFTS = np.linspace(-1.5, 1.5, 13)
# alpha * (largest |x|) on the grid: from linear over all data to saturated for all but the smallest.
GENTLEST, STEEPEST = 0.05, 300.0
CARRIED = 1e-3
"""The share of |weight| that counts as error, or what the model's type rounds off if that is more. weight * core + bias
is rounded in that type, and where x never changes sign least squares would find a function whose weight and bias are
millions and cancel."""
REACH = 24.0
"""A channel gives at most so many times more anywhere than it gave where it was fitted: 20 for the straightest
function of x that changes sign. Where x never does, the function that varies enough there would be huge elsewhere."""
LEAST_VARIANCE = 1e-10  # of a core over its squared mean: below it is rounding, and the channel constant
SMALLEST, LARGEST = 1e-18, 1e18  # steepness: beta and alpha are float32 in the file, beta the inverse square
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
class _Target:
    """What all candidates of a fit are held against: per channel [C], or per channel and bin [C, BINS].

    x is the mean of each bin; of an empty one, which weighs nothing, that of another bin of the channel, so that no
    candidate gives there what it gives at no token.
    """

    x: np.ndarray
    count: np.ndarray
    sums: np.ndarray
    tokens: np.ndarray
    mean: np.ndarray
    spread: np.ndarray  # sum of squares around the mean

    @classmethod
    def of(cls, moments: Moments) -> _Target:
        tokens = np.maximum(moments.count.sum(1), np.finfo(float).tiny)
        mean = moments.sum_target.sum(1) / tokens
        means, filled = moments.bin_means, moments.count > 0
        some = np.take_along_axis(means, filled.argmax(1)[:, None], 1)
        spread = moments.target_squares - tokens * mean**2
        return cls(np.where(filled, means, some), moments.count, moments.sum_target, tokens, mean, spread)

    def mean_of(self, core: np.ndarray) -> np.ndarray:
        """Over all tokens of each channel."""
        return _products(self.count, core) / self.tokens


@dataclasses.dataclass(frozen=True)
class _Line:
    """weight, bias and the sum of squared errors they leave, what rounding will add included; [C] each."""

    weight: np.ndarray
    bias: np.ndarray
    error: np.ndarray


def fit(
    function: Function, moments: Moments, extent: Range, steeper: float = 1.0, dtype: np.dtype | type = np.float32
) -> Fit:
    """The parameters, one of each per channel, that minimise the squared error to the target.

    The steepness found is multiplied by `steeper`, and weight and bias are those of least error then. `dtype` is the
    model's: weight and bias are values of that type, the others of float32, and the errors are those of such values.
    """
    used = extent.largest > 0
    largest = np.where(used, extent.largest, 1.0)
    target, kept = _Target.of(moments), np.dtype(dtype)

    def scalars(log_steepness: np.ndarray, shift: np.ndarray) -> dict[str, np.ndarray]:
        steepness = np.clip(np.exp(log_steepness) / largest, SMALLEST, LARGEST)
        return {name: _as(np.float32, value) for name, value in function.from_steepness(steepness, shift).items()}

    def core(log_steepness: np.ndarray, shift: np.ndarray) -> np.ndarray:
        wide = {name: value[:, None] for name, value in scalars(log_steepness, shift).items()}
        return function.core(target.x, **wide)

    def line(log_steepness: np.ndarray, shift: np.ndarray) -> _Line:
        return _least_squares(core(log_steepness, shift), target, kept)

    log_steepness, shift = _search(line, len(largest), has_shift=function.has_shift)
    log_steepness = log_steepness + np.log(steeper)
    best = _in_type(line(log_steepness, shift), core(log_steepness, shift), target, kept)
    per_channel = np.sqrt(best.error / np.maximum(moments.target_squares, np.finfo(float).tiny))
    total = np.sqrt(best.error.sum() / max(moments.target_squares.sum(), np.finfo(float).tiny))
    parameters = NormParameters(best.weight, best.bias, scalars(log_steepness, shift))
    return Fit(parameters, float(total), per_channel)


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
        # Of two points inside the one of less error is, in what is left, one of the next two.
        left = inner_error <= outer_error
        low, high = np.where(left, low, inner), np.where(left, outer, high)
        asked = np.where(left, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        told = error(asked)
        inner, outer = np.where(left, asked, outer), np.where(left, inner, asked)
        inner_error, outer_error = np.where(left, told, outer_error), np.where(left, inner_error, told)
    found = np.where(inner_error <= outer_error, inner, outer)
    # Golden section assumes one valley; where the grid point was better after all, it stays.
    return np.where(np.minimum(inner_error, outer_error) <= errors.min(0), found, grid[best])


def _least_squares(core: np.ndarray, target: _Target, dtype: np.dtype) -> _Line:
    """The best line from core [C, BINS] to the target that stays within REACH, per channel, with centred sums.

    Errors count what the line leaves of the target's sums per bin and of its spread inside the bins.
    """
    core_mean = target.mean_of(core)
    centred = core - core_mean[:, None]
    variance = _products(target.count * centred, centred)
    covariance = _products(target.sums, centred)
    varies = variance > LEAST_VARIANCE * target.tokens * core_mean**2
    best = np.divide(covariance, variance, out=np.zeros_like(variance), where=varies)
    given = np.maximum(*(np.abs(target.mean + best * end) for end in (centred.min(1), centred.max(1))))
    most = _most_weight(best, given, core_mean, target.mean, dtype)
    weight = np.clip(best, -most, most)
    bias = target.mean - weight * core_mean
    error = target.spread - weight * (2 * covariance - weight * variance)
    rounded = max(CARRIED, float(_info(dtype).eps) / 2)
    return _Line(weight, bias, np.maximum(error, 0.0) + target.tokens * np.square(rounded * weight))


def _products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The sum over bins of the products [C] of two arrays [C, BINS]; einsum makes no array of the products."""
    summed: np.ndarray = np.einsum("cb,cb->c", one, other)
    return summed


def _most_weight(
    best: np.ndarray, given: np.ndarray, core_mean: np.ndarray, target_mean: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """The largest |weight| [C]: no output of any x, at most |target_mean| + |weight| (1 + |core_mean|), is then above
    REACH + 1 times the largest one that was given, which is `given` with the weight `best`; nor above what the type
    holds."""
    around = 1 + np.abs(core_mean)
    within = np.abs(best) * around <= REACH * given
    held = np.maximum(_info(dtype).max - np.abs(target_mean), 0) / around
    return np.where(within, held, np.minimum(REACH * np.abs(target_mean) / around, held))


def _in_type(line: _Line, core: np.ndarray, target: _Target, dtype: np.dtype) -> _Line:
    """The line with weight and bias of the model's type, the bias the best for that weight, and the error it leaves."""
    weight = _as(dtype, line.weight)
    bias = _as(dtype, target.mean - weight * target.mean_of(core))
    y = weight[:, None] * core + bias[:, None]
    # From the mean on, or a large offset would drown what is left of a small variation.
    offset = target.mean[:, None]
    moved, wanted = y - offset, target.sums - target.count * offset
    error = target.spread + (target.count * moved**2 - 2 * wanted * moved).sum(1)
    return _Line(weight, bias, np.maximum(error, 0.0))


def _as(dtype: np.dtype | type, array: np.ndarray) -> np.ndarray:
    """The values of `dtype` that are nearest, as float64."""
    return array.astype(dtype).astype(np.float64)


def _info(dtype: np.dtype) -> ml_dtypes.finfo:
    return ml_dtypes.finfo(dtype)


def error_on(function: Function, parameters: NormParameters, moments: Moments) -> float:
    """||y - target|| / ||target|| of parameters on moments of x that were not fitted to; x with the gain, if any."""
    wide = {
        name: np.broadcast_to(value, parameters.weight.shape)[:, None] for name, value in parameters.scalars.items()
    }
    y = parameters.weight[:, None] * function.core(moments.bin_means, **wide) + parameters.bias[:, None]
    squared = (moments.count * y**2 - 2 * moments.sum_target * y).sum() + moments.target_squares.sum()
    return float(np.sqrt(max(squared, 0.0) / max(moments.target_squares.sum(), np.finfo(float).tiny)))

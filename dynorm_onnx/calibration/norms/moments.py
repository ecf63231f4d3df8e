"""Streaming statistics of (x, target) per channel, enough to fit any element-wise function of x.

A norm's replacement sees one number per channel, so all that a least-squares fit can ask of the data
is, for each channel, how the target is distributed given x. That is kept as a histogram over x with
the sums of x and of the target in every bin. Any number of candidate functions can then be tried
without another pass over the activations: a bin is so narrow that the function at the bin's mean
stands for its mean over the bin.
"""

from __future__ import annotations

import dataclasses

import numpy as np

BINS = 256


@dataclasses.dataclass(frozen=True)
class Range:
    """Per channel, [C] float64: the largest |x|, the sum of ln |x| over tokens where x is not 0, and how many those
    are; and how many tokens were seen.
    """

    largest: np.ndarray
    logarithms: np.ndarray
    present: np.ndarray
    tokens: int

    @classmethod
    def of(cls, x: np.ndarray) -> Range:
        """The range of x [..., C]; values that are not finite are left out."""
        rows = finite_rows(x)
        if not len(rows):
            nothing = np.zeros(x.shape[-1])
            return cls(nothing, nothing, nothing, 0)
        size = np.abs(rows)
        present = size > 0
        logarithms = np.log(size, out=np.zeros_like(size), where=present)
        return cls(size.max(0), logarithms.sum(0), present.sum(0).astype(np.float64), len(rows))

    def merge(self, other: Range) -> Range:
        """The range of the joined data."""
        return Range(
            np.maximum(self.largest, other.largest),
            self.logarithms + other.logarithms,
            self.present + other.present,
            self.tokens + other.tokens,
        )

    @property
    def usual(self) -> np.ndarray:
        """The usual |x| per channel, 0 where x is always 0: a geometric mean, which no outlier moves as it would the
        root mean square. (In units in which it is about the standard deviation of normal x.)
        """
        mean = np.exp(self.logarithms / np.maximum(self.present, 1.0))
        return np.where(self.present > 0, 2.0 * mean, 0.0)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Histograms over asinh(x / scale), [C, BINS] float64 each, and sums of the target per channel.

    asinh gives fine bins where the mass is and still reaches the outliers. Two can be merged if they
    were made for the same Range.
    """

    count: np.ndarray  # sums of the tokens' weights
    sum_x: np.ndarray
    sum_target: np.ndarray
    target_squares: np.ndarray  # [C]

    def merge(self, other: Moments) -> Moments:
        """The moments of the joined data."""
        return Moments(
            self.count + other.count,
            self.sum_x + other.sum_x,
            self.sum_target + other.sum_target,
            self.target_squares + other.target_squares,
        )

    @property
    def bin_means(self) -> np.ndarray:
        """Mean x per channel and bin, [C, BINS]; 0 where a bin is empty."""
        return np.divide(self.sum_x, self.count, out=np.zeros_like(self.sum_x), where=self.count > 0)


def moments_of(x: np.ndarray, target: np.ndarray, extent: Range, weights: np.ndarray | None = None) -> Moments:
    """The moments of one batch: x and target [..., C], `extent` the Range of all batches together.

    `weights` [rows] says how much each row of the flattened x counts, by default 1. Tokens with a value
    that is not finite, in x or target, are left out.
    """
    channels = x.shape[-1]
    rows, wanted = (np.asarray(array, np.float64).reshape(-1, channels) for array in (x, target))
    counts = np.ones(len(rows)) if weights is None else weights.astype(np.float64)
    usable = np.isfinite(rows).all(1) & np.isfinite(wanted).all(1) & (counts > 0)
    if not usable.all():
        rows, wanted, counts = rows[usable], wanted[usable], counts[usable]
    scale, half_width = _scale(extent)
    unit = np.arcsinh(rows / scale) / half_width  # in [-1, 1]
    bins = np.clip(((unit + 1) * (BINS / 2)).astype(np.int64), 0, BINS - 1)
    bins += np.arange(channels) * BINS
    flat = bins.ravel()

    def per_bin(values: np.ndarray) -> np.ndarray:
        weighted = np.broadcast_to(counts[:, None] * values, rows.shape)
        return np.bincount(flat, weighted.ravel(), channels * BINS).reshape(channels, BINS)

    return Moments(per_bin(np.ones(1)), per_bin(rows), per_bin(wanted), counts @ np.square(wanted))


def finite_rows(x: np.ndarray) -> np.ndarray:
    """x [..., C] as [tokens, C] float64 without the tokens that hold infinities or NaN."""
    rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    return rows[np.isfinite(rows).all(1)]


def _scale(extent: Range) -> tuple[np.ndarray, np.ndarray]:
    """(where asinh turns from linear to logarithmic, asinh of the largest x), per channel."""
    usual = np.maximum(extent.usual, 1e-9 * extent.largest)
    scale = np.where(usual > 0, usual, 1.0)
    half_width = np.arcsinh(extent.largest / scale)
    return scale, np.where(half_width > 0, half_width, 1.0)

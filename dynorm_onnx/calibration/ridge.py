"""Ridge regression towards given weights, from streamed sums; its strength chosen on held-out tokens.

A layer y = F W should, on the converted model's inputs F, give the original's outputs. With R the
part of the target that F W misses, the correction is (F^T F + lambda m I)^-1 F^T R, m the mean of
the diagonal: GPTQ's idea (Frantar et al., arXiv 2210.17323) with norms in the place of quantisation.
"""

from __future__ import annotations

import dataclasses

import numpy as np

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The lambdas tried, in units of the mean of the diagonal of F^T F."""


HELD_OUT_SHARE = 4  # one token in so many chooses lambda


def training_and_held_out(rows: int) -> tuple[slice, slice]:
    """Which rows of a batch to solve with and which to choose by: the last, so whole samples where it can be."""
    cut = rows - max(rows // HELD_OUT_SHARE, 1)
    return slice(0, cut), slice(cut, rows)


@dataclasses.dataclass(frozen=True)
class NormalSums:
    """F^T F [K, K] and F^T R [K, N], float64, summed over tokens."""

    gram: np.ndarray
    cross: np.ndarray

    def merge(self, other: NormalSums) -> NormalSums:
        """The sums of the joined data."""
        return NormalSums(self.gram + other.gram, self.cross + other.cross)

    def solve(self, strength: float) -> np.ndarray:
        """The correction [K, N] for one lambda."""
        size = len(self.gram)
        shift = strength * np.trace(self.gram) / size
        # Features that are always zero leave the matrix singular where lambda is tiny.
        floor = np.finfo(np.float64).eps * np.trace(self.gram)
        return np.linalg.solve(self.gram + max(shift, floor, 1e-300) * np.eye(size), self.cross)

    def error_change(self, correction: np.ndarray) -> float:
        """By how much the correction changes the squared error on this data; negative is better."""
        return float(np.sum(correction * (self.gram @ correction)) - 2 * np.sum(correction * self.cross))


@dataclasses.dataclass(frozen=True)
class Ridge:
    """A solved layer: the correction to its weights, and how it was regularised.

    `strength` is None where every lambda made held-out tokens worse; the correction is then zero.
    """

    correction: np.ndarray
    strength: float | None


def solve_ridge(training: NormalSums, held_out: NormalSums) -> Ridge:
    """Choose lambda on held-out tokens, then solve on all of them."""
    changes = {strength: held_out.error_change(training.solve(strength)) for strength in STRENGTHS}
    best = min(changes, key=changes.__getitem__)
    if not changes[best] < 0:
        return Ridge(np.zeros_like(training.cross), None)
    return Ridge(training.merge(held_out).solve(best), best)

"""The search for directions whose squares tell a token's length, at all norms of a stream at once.

At norm l the squared length S of a token x is foretold as a_l + sum_j kappa_lj (x . b_j)^2 with a_l, kappa_lj > 0. The
directions b_j, orthonormal, are the norms' in common: they become the channels of the stream that are coupled. Sought
are those of least relative error of S, by Adam on a few tokens a step; after each step they are made orthonormal again
(a retraction: Wen and Yin, A feasible method for optimization with orthogonality constraints, 2013).

Channels as they lie do worse by far (docs/quality.md): a length is spread over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dynorm_onnx.calibration.rotation.adam import Adam, cosine
from dynorm_onnx.calibration.rotation.length_tokens import LengthTokens

STEPS = 5000
NORMS = 4  # of the stream, a step
TOKENS = 512  # of each, a step
RATE = 0.003  # at the peak, of the directions' entries
RATE_OF_KAPPAS = 0.02  # at the peak, of the logarithms of a and kappa
WARM_UP = 50  # steps in which the rates grow
LEAST = 0.02  # of the peak, at the end


def find_directions(
    norms: Sequence[LengthTokens],
    fixed: Sequence[int],
    count: int,
    rng: np.random.Generator,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """B [C, count] float64, orthonormal: the axes of the channels `fixed`, fewer than count, and what was found."""
    directions = _start(norms, fixed, count)
    estimates = [Estimate(tokens, count) for tokens in norms]
    of_directions, of_estimates = Adam(), [Adam() for _ in norms]
    for step in range(STEPS):
        rate = cosine(step, STEPS, WARM_UP, LEAST)
        total = np.zeros_like(directions)
        for place in np.sort(rng.permutation(len(norms))[:NORMS]):
            one = estimates[place]
            _, by_directions, by_logarithms = one.error(directions, *one.sampled(rng))
            total += by_directions
            one.logarithms -= RATE_OF_KAPPAS * rate * of_estimates[place].direction(by_logarithms)
        total[:, : len(fixed)] = 0.0
        total -= directions @ (directions.T @ total + total.T @ directions) / 2  # along the orthonormal ones
        directions = _orthonormal(directions - RATE * rate * of_directions.direction(total), fixed)
        progress(step + 1, STEPS)
    return _orthonormal(directions.astype(np.float64), fixed)


class Estimate:
    """How S follows from the directions at one norm; `logarithms` [count + 1] float32 are those of a and kappa."""

    def __init__(self, tokens: LengthTokens, count: int) -> None:
        self._tokens = tokens
        self.logarithms = np.zeros(count + 1, np.float32)
        self.logarithms[0] = -0.7

    def sampled(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """x [T, C] and S [T] of TOKENS tokens that lie together, in an order drawn at random, or of all if they are
        fewer."""
        count = min(TOKENS, self._tokens.sought_on)
        start = int(rng.integers(self._tokens.sought_on - count + 1))
        return self._tokens.x.read(start, start + count), self._tokens.squares[start : start + count]

    def error(self, directions: np.ndarray, x: np.ndarray, squares: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The mean of the squared relative error of S over tokens x [T, C], and its gradients by the directions [C, k]
        and by the logarithms [k + 1]."""
        constant, kappas = np.exp(self.logarithms[0]), np.exp(self.logarithms[1:])
        seen = x @ directions
        told = np.square(seen)
        residual = (constant + told @ kappas) / squares - 1
        by_estimate = 2 * residual / (squares * np.float32(len(x)))
        by_directions = x.T @ (2 * seen * kappas * by_estimate[:, None])
        by_logarithms = np.append(constant * by_estimate.sum(), kappas * (by_estimate @ told))
        return float(np.square(residual).mean()), by_directions, by_logarithms


def _start(norms: Sequence[LengthTokens], fixed: Sequence[int], count: int) -> np.ndarray:
    """The fixed axes, and of the rest the directions that hold most of the squared lengths."""
    channels = norms[0].x.channels
    total = np.zeros((channels, channels))
    for tokens in norms:
        for place, x in tokens.x.blocks(tokens.sought_on):
            scaled = x / np.sqrt(tokens.squares[place])[:, None]
            total += scaled.T @ scaled
    total[list(fixed)] = 0.0
    total[:, list(fixed)] = 0.0
    strongest = np.linalg.eigh(total)[1][:, ::-1]
    found = np.zeros((channels, count))
    found[:, len(fixed) :] = strongest[:, : count - len(fixed)]
    return _orthonormal(found, fixed).astype(np.float32)


def _orthonormal(directions: np.ndarray, fixed: Sequence[int]) -> np.ndarray:
    """The nearby orthonormal ones; the first stay the fixed axes, to the last bit."""
    kept, free = np.zeros_like(directions), directions[:, len(fixed) :].copy()
    free[list(fixed)] = 0.0
    orthogonal, triangle = np.linalg.qr(free)
    kept[:, len(fixed) :] = orthogonal * np.sign(np.diag(triangle))
    kept[list(fixed), range(len(fixed))] = 1.0
    return kept

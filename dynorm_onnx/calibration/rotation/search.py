"""The search for a rotation: Adam over the rotations themselves, on a few tokens a step.

Every step is a rotation of its own, R <- R cayley(A) with A skew, so that R stays orthogonal (Wen and Yin, A feasible
method for optimization with orthogonality constraints, 2013). Adam's moments are those
of A's entries. Directions that must stay are taken out of A.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dynorm_onnx.calibration.rotation.adam import Adam, cosine
from dynorm_onnx.calibration.rotation.imitation import Imitation
from dynorm_onnx.calibration.rotation.tokens import NormTokens

STEPS = 600
TOKENS = 128  # of each norm, a step
NORMS = 16  # of a stream, a step: what a step of a deep model may take
JITTER = 0.15
"""By how much lengths are off, as the deviation of their logarithm: what the functions before this one, each of which
lets errors in length through, make of them."""

RATE = 0.25
"""At the peak, by how much a step turns: every entry of A by so much over the root of C."""

RATE_OF_FUNCTIONS = 0.03  # at the peak, of b; of w three times that
WARM_UP = 20  # steps in which the rates grow
LEAST = 0.02  # of the peak, at the end


def find_rotation(
    norms: Sequence[NormTokens], fixed: np.ndarray, rng: np.random.Generator, progress: Callable[[int, int], None]
) -> np.ndarray:
    """R [C, C] float64, orthogonal, with which functions of single channels imitate the norms of a stream best.

    `fixed` [C, k] are orthonormal directions that R leaves as they are, R v = v.
    """
    channels = len(fixed)
    imitations = [Imitation(tokens) for tokens in norms]
    rotation, identity = np.eye(channels, dtype=np.float32), np.eye(channels, dtype=np.float32)
    kept = fixed.astype(np.float32)
    of_rotation, of_functions = Adam(), [Adam() for _ in imitations]
    scale = np.array([[3.0], [1.0]], np.float32)
    for step in range(STEPS):
        rate = cosine(step, STEPS, WARM_UP, LEAST)
        total = np.zeros_like(rotation)
        for place in np.sort(rng.permutation(len(imitations))[:NORMS]):
            one = imitations[place]
            _, gradient = one.error(rotation, *one.sampled(TOKENS, JITTER, rng))
            total += gradient.rotation
            one.parameters -= RATE_OF_FUNCTIONS * rate * scale * of_functions[place].direction(gradient.parameters)
        skew = rotation.T @ total
        turn = -RATE / channels**0.5 * rate * of_rotation.direction(_without(kept, skew - skew.T))
        turn = _without(kept, turn - turn.T) / 4  # its half, exactly skew
        rotation = rotation @ np.linalg.solve(identity - turn, identity + turn)
        progress(step + 1, STEPS)
    return _exact(rotation.astype(np.float64), fixed)


def _without(kept: np.ndarray, skew: np.ndarray) -> np.ndarray:
    """A matrix that takes no direction to or from those that are kept."""
    if not kept.shape[1]:
        return skew
    left = skew - kept @ (kept.T @ skew)
    return np.asarray(left - (left @ kept) @ kept.T)


def _exact(rotation: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """The nearest orthogonal matrix that leaves the fixed directions exactly as they are."""
    count = fixed.shape[1]
    free = np.linalg.qr(fixed, mode="complete")[0][:, count:] if count else np.eye(len(fixed))
    left, _, right = np.linalg.svd(free.T @ rotation @ free)
    return np.asarray(free @ (left @ right) @ free.T + fixed @ fixed.T)

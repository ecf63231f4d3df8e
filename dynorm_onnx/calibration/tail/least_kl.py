"""Weights of least KL, by steps that know its curvature and a ridge, which held-out tokens choose.

What a layer can learn by heart grows with its weights and falls with the tokens: its ridge is the trace of its
curvature, by the tokens. Few tokens then pull a layer of many weights no further than they can tell.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable

import numpy as np

from dynorm_onnx.calibration.tail.curvature import Curvature
from dynorm_onnx.calibration.tail.lbfgs import MEMORY, Objective, minimise

log = logging.getLogger(__name__)

RIDGES = (0.5, 0.05, 0.005)
"""Traces by tokens, tried one after the other for as long as that helps. The first is the best for byte_llama's end,
with 57,344, 7,168 and 1,792 tokens; the others are for what a layer can really make up for."""
MOST_STEPS = 20  # with each ridge
PATIENCE = 3  # steps without a gain on held-out tokens
WORK_LIMIT = 1.6e10
"""Tokens x inputs x outputs of one evaluation; above it every n-th token is taken."""

SEARCH_LIMIT = 4 << 30
"""Bytes that L-BFGS may take for its steps; layers that need more are not fitted."""


def are_too_many(weights: int) -> bool:
    """Whether a search for so many numbers would take more memory than SEARCH_LIMIT."""
    return 8 * 2 * (MEMORY + 3) * weights > SEARCH_LIMIT


def sampling_step(tokens: int, weights: int, limit: float = WORK_LIMIT) -> int:
    """Every how many-th token is taken, so that tokens x weights keep within `limit`."""
    return max(1, round(tokens * weights / limit))


def least_kl(
    name: str,
    training: Objective,
    held_out: Callable[[np.ndarray], float],
    start: np.ndarray,
    curvature: Curvature,
    tokens: int,
) -> np.ndarray | None:
    """Weights of less mean KL than `start`, a vector, by as much as is best for held-out tokens; None where those gain
    nothing. `tokens` is how many `training` is the mean of."""
    best = first = held_out(start)
    found, at, taken = None, np.asarray(start, np.float64), 0
    for times in RIDGES:
        ridge = times / tokens
        steps = minimise(
            _with_ridge(training, start, ridge * curvature.traces()),
            at,
            functools.partial(curvature.solve, ridge=ridge),
        )
        before, since = best, 0
        for weights in itertools.islice(steps, MOST_STEPS):
            taken, since = taken + 1, since + 1
            if (kl := held_out(weights)) < best:
                best, found, since = kl, weights, 0
            elif since == PATIENCE:
                break
        if found is None or not best < before:
            break
        at = found
    log.info("%s: held-out KL %.4f -> %.4f in %d steps", name, first, best, taken)
    return found


def _with_ridge(objective: Objective, start: np.ndarray, strengths: np.ndarray) -> Objective:
    """The objective and half the squares of what the weights move by, times their strengths."""

    def value_and_gradient(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(weights)
        moved = weights - start
        pull = strengths * moved
        return value + 0.5 * float(np.vdot(moved, pull)), gradient + pull

    return value_and_gradient

"""L-BFGS for a smooth convex function of one array (Nocedal and Wright, Numerical Optimization, ch. 7)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

MEMORY = 8
SUFFICIENT_DECREASE = 1e-4
MOST_HALVINGS = 12

# x -> (f(x), gradient of f at x)
Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


def minimise(
    objective: Objective, start: np.ndarray, solve: Callable[[np.ndarray], np.ndarray]
) -> Iterator[np.ndarray]:
    """The iterates, each with a lower value than the one before; ends where no step is downhill.

    `solve` multiplies by an estimate of the inverse Hessian, positive definite. The caller decides when it has seen
    enough.
    """
    x = start
    value, gradient = objective(x)
    pairs: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=MEMORY)
    while True:
        direction = -_times_inverse_hessian(gradient, pairs, solve)
        slope = float(np.vdot(gradient, direction))
        if not slope < 0:
            return
        step = 1.0
        for _ in range(MOST_HALVINGS):
            new_value, new_gradient = objective(x + step * direction)
            if new_value <= value + SUFFICIENT_DECREASE * step * slope:
                break
            step /= 2
        else:
            return
        moved, turned = step * direction, new_gradient - gradient
        curvature = float(np.vdot(moved, turned))
        if curvature > 0:
            pairs.append((moved, turned, curvature))
        x, value, gradient = x + moved, new_value, new_gradient
        yield x


def _times_inverse_hessian(
    gradient: np.ndarray,
    pairs: deque[tuple[np.ndarray, np.ndarray, float]],
    solve: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """The two-loop recursion."""
    result = gradient.copy()
    weights = []
    for moved, turned, curvature in reversed(pairs):
        weight = float(np.vdot(moved, result)) / curvature
        weights.append(weight)
        result -= weight * turned
    result = solve(result)
    if pairs:
        _, turned, curvature = pairs[-1]
        result *= curvature / float(np.vdot(turned, solve(turned)))
    for (moved, turned, curvature), weight in zip(pairs, reversed(weights), strict=True):
        result += (weight - float(np.vdot(turned, result)) / curvature) * moved
    return result

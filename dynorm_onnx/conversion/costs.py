"""What the replacement of each norm costs of a bound, measured or estimated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from dynorm_onnx.calibration.norms.calibrate import by_place
from dynorm_onnx.conversion.attempt import Attempt, Outcome
from dynorm_onnx.graph.linear.find import find_linear_layers
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.runtime.validate import Validation

COST_BATCHES = 2  # held-out batches on which costs are measured
MOST_MEASURED = 16
"""Costs that are measured, each by a run of a whole model: of single norms up to so many, else of runs of neighbours,
which divide a cost among them by the squares of their fit errors."""


def costs(attempt: Attempt, outcome: Outcome, excess: Callable[[Validation], float]) -> dict[str, float]:
    """By site, how much damage goes, in units of the bounds, when that norm comes back, alone or with its neighbours.

    `outcome` is of all norms of the attempt, and `excess` measures damage. With a norm come the original weights of the
    layers that read it, for the new ones suit its replacement.
    """
    calibrated = outcome.calibrated
    if calibrated is None or attempt.validator is None:
        return {}  # an exact rewrite: keeping norms would not make it better
    found = find_linear_layers(attempt.lowered.graph)
    compare = attempt.validator.on_some(COST_BATCHES)
    measured: dict[str, float] = {}
    groups = neighbours(attempt.norms)
    with attempt.clock.step("costs") as advance:
        every = excess(compare(outcome.converted))
        for done, group in enumerate(groups):
            outside, inside = by_place(attempt.lowered.graph, group)
            values = {norm.y for norm in outside} | {output for holder in inside for output in holder.outputs}
            layers = [layer for layer in (*found.layers, *found.on_grid) if layer.x in values]
            readers = {value.name for layer in layers for value in layer.initializers}
            weights = {name: array for name, array in calibrated.initializers.items() if name not in readers}
            others = [norm for norm in attempt.norms if norm not in group]
            back = attempt.rewritten(others, dataclasses.replace(calibrated, initializers=weights))
            errors = {norm.site_name: calibrated.fits[norm.site_name].relative_error for norm in group}
            measured |= shared(every - excess(compare(back)), errors)
            advance(done + 1, len(groups))
    return measured


def neighbours(norms: Sequence[LoweredNorm]) -> list[Sequence[LoweredNorm]]:
    """The norms, in graph order, in at most MOST_MEASURED runs."""
    size = -(-len(norms) // MOST_MEASURED)
    return [norms[start : start + size] for start in range(0, len(norms), size)]


def shared(cost: float, errors: Mapping[str, float]) -> dict[str, float]:
    """A cost divided by the squares of the errors, by site; evenly where these say nothing.

    A negative cost is divided evenly too, so that no norm seems cheap for being fitted badly.
    """
    squares = {name: error**2 for name, error in errors.items()}
    total = sum(squares.values())
    if cost < 0 or not 0 < total < math.inf:
        return {name: cost / len(squares) for name in squares}
    return {name: cost * square / total for name, square in squares.items()}

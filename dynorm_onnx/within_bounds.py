"""A conversion that keeps within --max-kl and --max-error, or without them simply a conversion."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from dynorm_onnx.attempts import Attempt, attempt, rewritten
from dynorm_onnx.bounds import Met, keep_costliest
from dynorm_onnx.calibration.checkpoint import Checkpoint
from dynorm_onnx.calibration.data import CalibrationData
from dynorm_onnx.calibration.fit import Fit
from dynorm_onnx.calibration.fit_rows import Leeway
from dynorm_onnx.calibration.norms import by_place
from dynorm_onnx.config import ConvertConfig
from dynorm_onnx.errors import BoundError
from dynorm_onnx.graph.linear import find_linear_layers
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.progress import StepClock
from dynorm_onnx.runtime.pieces import Recorded, open_for_batches
from dynorm_onnx.runtime.validate import Validation, validate

COST_BATCHES = 2  # held-out batches on which costs are measured
MOST_MEASURED = 16
"""Costs that are measured, each by a run of a whole model: of single norms up to so many, else of runs of neighbours,
which divide a cost among them by the squares of their fit errors."""


def within_bounds(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    data: CalibrationData | None,
    leeway: Mapping[str, Leeway],
    in_bodies: Mapping[str, Fit],
    clock: StepClock,
    checkpoint: Checkpoint,
) -> Met[Attempt]:
    """The conversion, with as many norms kept as --max-kl and --max-error ask for; BoundError if all must be.

    `in_bodies` has the fits of the norms in bodies; `checkpoint` what a run that was cut has found.
    """

    def without(kept: frozenset[str]) -> Attempt:
        replaced = [norm for norm in norms if norm.site_name not in kept]
        return attempt(config, lowered, replaced, data, leeway, in_bodies, clock, checkpoint)

    if not config.is_bounded:
        return Met(without(frozenset()), {})
    met = keep_costliest(
        without,
        damage=lambda outcome: _excess(config, outcome.validation),
        costs=lambda outcome: _costs(config, lowered, norms, outcome, data, clock),
        bound=1.0,
    )
    if met is None:
        bounds = (("--max-kl", config.max_kl), ("--max-error", config.max_error))
        asked = " and ".join(f"{knob} {value}" for knob, value in bounds if value is not None)
        raise BoundError(f"{asked} cannot be met, even with only the least costly of {len(norms)} norms replaced")
    return met


def _excess(config: ConvertConfig, validation: Validation | None) -> float:
    """The damage in units of what the bounds allow; at most 1 where they are met."""
    assert validation is not None  # ConvertConfig refuses a bound without validation
    excess = 0.0
    if config.max_kl is not None:
        if validation.quality is None:
            raise BoundError(f"--max-kl {config.max_kl}: the model has no output of logits; use --max-error")
        excess = max(excess, validation.quality.kl_mean / config.max_kl)
    if config.max_error is not None:
        excess = max(excess, validation.largest_error / config.max_error)
    return excess


def _costs(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    outcome: Attempt,
    data: CalibrationData | None,
    clock: StepClock,
) -> dict[str, float]:
    """By site, how much damage goes, in units of the bounds, when that norm comes back, alone or with its neighbours.

    With it come the original weights of the layers that read it, for the new ones suit its replacement.
    """
    calibrated = outcome.calibrated
    if calibrated is None or data is None:
        return {}  # an exact rewrite: keeping norms would not make it better
    found = find_linear_layers(lowered.graph)
    original = Recorded(open_for_batches(config.model, provider=config.provider))
    batches, vocabulary = data.validation[:COST_BATCHES], data.vocabulary

    def excess(model: ir.Model) -> float:
        opened = open_for_batches(model, provider=config.provider)
        return _excess(config, validate(original, opened, batches, vocabulary=vocabulary))

    costs: dict[str, float] = {}
    groups = neighbours(norms)
    with clock.step("costs") as advance:
        every = excess(outcome.converted)
        for done, group in enumerate(groups):
            outside, inside = by_place(lowered.graph, group)
            values = {norm.y for norm in outside} | {output for holder in inside for output in holder.outputs}
            layers = [layer for layer in (*found.layers, *found.on_grid) if layer.x in values]
            readers = {value.name for layer in layers for value in layer.initializers}
            weights = {name: array for name, array in calibrated.initializers.items() if name not in readers}
            others = [norm for norm in norms if norm not in group]
            back = rewritten(config, lowered, others, dataclasses.replace(calibrated, initializers=weights))
            errors = {norm.site_name: calibrated.fits[norm.site_name].relative_error for norm in group}
            costs |= shared(every - excess(back), errors)
            advance(done + 1, len(groups))
    return costs


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

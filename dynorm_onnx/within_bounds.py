"""A conversion that keeps within --max-kl and --max-error, or without them simply a conversion."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from dynorm_onnx.attempts import Attempt, attempt, rewritten
from dynorm_onnx.bounds import Met, keep_costliest
from dynorm_onnx.calibration.data import CalibrationData
from dynorm_onnx.config import ConvertConfig
from dynorm_onnx.errors import BoundError
from dynorm_onnx.graph.linear import find_linear_layers
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.progress import StepClock
from dynorm_onnx.runtime.pieces import open_for_batches
from dynorm_onnx.runtime.validate import Validation, validate

COST_BATCHES = 2  # held-out batches on which the cost of each single norm is measured


def within_bounds(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    data: CalibrationData | None,
    clock: StepClock,
) -> Met[Attempt]:
    """The conversion, with as many norms kept as --max-kl and --max-error ask for; BoundError if all must be."""

    def without(kept: frozenset[str]) -> Attempt:
        return attempt(config, lowered, [norm for norm in norms if norm.site_name not in kept], data, clock)

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
    """By site, how much damage goes, in units of the bounds, when that norm alone comes back.

    With it come the original weights of the layers that read it, for the new ones suit its replacement.
    """
    calibrated = outcome.calibrated
    if calibrated is None or data is None:
        return {}  # an exact rewrite: keeping norms would not make it better
    layers = find_linear_layers(lowered.graph).layers
    readers = {norm.site_name: {layer.name for layer in layers if layer.x is norm.y} for norm in norms}
    original = open_for_batches(config.model, provider=config.provider)
    batches, vocabulary = data.validation[:COST_BATCHES], data.vocabulary

    def excess(model: ir.Model) -> float:
        session = open_for_batches(model, provider=config.provider)
        return _excess(config, validate(original, session, batches, vocabulary=vocabulary))

    every = excess(outcome.converted)
    costs: dict[str, float] = {}
    with clock.step("costs") as advance:
        for done, norm in enumerate(norms):
            others = [other for other in norms if other is not norm]
            weights = {
                name: array for name, array in calibrated.initializers.items() if name not in readers[norm.site_name]
            }
            back = rewritten(config, lowered, others, dataclasses.replace(calibrated, initializers=weights))
            costs[norm.site_name] = every - excess(back)
            advance(done + 1, len(norms))
    return costs

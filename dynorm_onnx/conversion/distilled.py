"""Method "distil": what another way gave is trained, and kept if that has made it better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from dynorm_onnx.calibration.data import CalibrationData
from dynorm_onnx.calibration.norms.calibrate import Calibrated
from dynorm_onnx.conversion.attempt import Attempt, Outcome, Strategy
from dynorm_onnx.conversion.rotation import Rotated
from dynorm_onnx.conversion.trainable import require_functions, require_torch
from dynorm_onnx.conversion.training import Training
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.runtime.arrays import Feeds

RECONSTRUCTION_TOKENS = 32_768
"""Of the data of a distillation, so much is reconstructed on first: more gains little and costs time and memory."""


def convert_distilled(before: Strategy, training: Training, data: CalibrationData, attempt: Attempt) -> Outcome:
    """What `before` gave, trained towards the original; or as it was if the training has made it worse.

    Which norms are kept is chosen before: a training for every trial of a bound would cost too much. Raises UsageError
    where there is nothing to train.
    """
    require_functions(attempt.lowered, attempt.norms, training.train)
    outcome = before(attempt)
    if outcome.calibrated is None:
        return outcome
    with attempt.clock.step("distil") as advance:
        calibrated, run = training(attempt.lowered, outcome.converted, outcome.norms, outcome.calibrated, data, advance)
    worse = is_worse(run, fades=_fades(outcome.calibrated, training.coupled))
    if worse:
        calibrated = outcome.calibrated
    return dataclasses.replace(
        outcome,
        calibrated=calibrated,
        converted=attempt.rewritten(outcome.norms, calibrated),
        validation=None,
        distillation={**run, "kept": not worse},
    )


def beginning(turned: Rotated, data: CalibrationData, train: str, *, bounded: bool) -> tuple[str, Sequence[Feeds]]:
    """The method and the batches that a training begins with.

    Norms that are kept for a bound are chosen among the best that calibration alone can do. Coupled channels let a
    training begin with what is only fitted, as does what begins_fitted() says.
    """
    couples = any(part.most_coupled for part in turned.leeway.values())
    fitted = not bounded and (couples or begins_fitted(turned.model, turned.norms, train))
    return "fit" if fitted else "reconstruct", reconstruction_batches(data)


def begins_fitted(original: ir.Model, norms: Sequence[LoweredNorm], train: str) -> bool:
    """Whether training begins with fitted norms and the original's weights, not with a reconstruction.

    It does where a basis is learned: weights that were solved for in the old basis only have further to go then
    (KL 0.0153 against 0.0161 on the shipped model). `original` is the lowered model.
    """
    require_torch()
    from dynorm_onnx.pytorch.distil.basis import usable_bases

    return train == "all" and bool(usable_bases(original.graph, norms))


def is_worse(run: Mapping[str, Any], *, fades: bool) -> bool:
    """Whether a training, by its JSON object, ended with a larger loss than it began with, or with none.

    One in which coupled channels fade begins with what it must not keep, so that only a loss that is no number counts.
    """
    losses = [point["loss"] for point in run["losses"]]
    if not losses:
        return False
    return not math.isfinite(losses[-1]) or (losses[-1] > losses[0] and not fades)


def reconstruction_batches(data: CalibrationData) -> tuple[Feeds, ...]:
    """Batches spread evenly over the calibration data, of about RECONSTRUCTION_TOKENS together."""
    batches = data.calibration
    wanted = -(-len(batches) * RECONSTRUCTION_TOKENS // data.tokens) if data.tokens else len(batches)
    if wanted >= len(batches):
        return batches
    return tuple(batches[place * len(batches) // wanted] for place in range(wanted))


def _fades(calibrated: Calibrated, coupled: int | None) -> bool:
    """Whether a training has had to let coupled channels go."""
    couplings = [fitted.parameters.coupling for fitted in calibrated.fits.values()]
    return coupled is not None and any(own is not None and len(own.channels) > coupled for own in couplings)

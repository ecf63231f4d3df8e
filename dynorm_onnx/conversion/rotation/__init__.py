"""Streams rotated before they are calibrated: to norms nothing changes, to what replaces them much does.

Exact up to rounding, which is proved on data; what it brings is measured on tokens that were not looked at.
"""

from __future__ import annotations

import logging

from dynorm_onnx.calibration.checkpoint import Checkpoint
from dynorm_onnx.calibration.data import CalibrationData
from dynorm_onnx.conversion.rotation.axes import turned_to_axes
from dynorm_onnx.conversion.rotation.lengths import turned_to_lengths
from dynorm_onnx.conversion.rotation.turned import Rotated, parity_on
from dynorm_onnx.functions import Function
from dynorm_onnx.progress import StepClock
from dynorm_onnx.runtime.session import Provider

__all__ = ["Rotated", "rotated"]

log = logging.getLogger(__name__)


def rotated(
    given: Rotated,
    data: CalibrationData,
    *,
    function: Function,
    trained: bool,
    coupled: int | None,
    seed: int,
    provider: Provider,
    clock: StepClock,
    checkpoint: Checkpoint,
) -> Rotated:
    """Turns every stream for which that is exact and makes the functions err less; the model of `given` stays as it is.

    First the streams whose norms may couple channels, so that few channels tell a token's length; then those in which
    functions of single channels gain by it, unless the model is `trained` afterwards, which learns a basis of its own.
    A training in which channels fade to `coupled` need not begin with more directions: few tell what many channels do.
    """
    most = coupled if trained and coupled else None
    parity = parity_on(data, provider)
    with clock.step("rotate") as advance:
        outcome = turned_to_lengths(given, data, most, seed, parity, advance, checkpoint)
        if not trained:
            outcome = turned_to_axes(outcome, data, function, seed, parity, advance, checkpoint)
    _tell(outcome)
    return outcome


def _tell(outcome: Rotated) -> None:
    for stream in outcome.rotations.left:
        log.info("the stream that %s reads is not turned: %s", stream.sites[0], stream.reason)
    for found in outcome.rotations.lengths:
        line = "the stream that %s reads is turned: %d channels tell a token's squared length to %.3f instead of %.3f"
        log.info(line, found.sites[0], found.directions, found.error_after, found.error_before)
    for done in outcome.rotations.done:
        line = "the stream that %s reads is turned: its functions err by %.3f instead of %.3f"
        log.info(line, done.sites[0], done.error_after, done.error_before)

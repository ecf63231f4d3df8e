"""Streams rotated before they are calibrated: to norms nothing changes, to what replaces them much does.

Exact up to rounding, which is proved on data; what it brings is measured on tokens that were not looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from dynorm_onnx.calibration.checkpoint import Checkpoint
from dynorm_onnx.calibration.data import CalibrationData
from dynorm_onnx.calibration.fit_rows import Leeway
from dynorm_onnx.config import ConvertConfig
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.progress import StepClock
from dynorm_onnx.rotation.axes import turned_to_axes
from dynorm_onnx.rotation.lengths import turned_to_lengths
from dynorm_onnx.rotation.turned import Rotated

__all__ = ["Rotated", "rotated"]

log = logging.getLogger(__name__)


def rotated(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    data: CalibrationData | None,
    leeway: Mapping[str, Leeway],
    clock: StepClock,
    checkpoint: Checkpoint,
) -> Rotated:
    """Turns every stream for which that is exact and makes the functions err less; `lowered` stays as it is.

    First the streams whose norms may couple channels, so that few channels tell a token's length; then those in which
    functions of single channels gain by it. Nothing is turned for an exact rewrite.
    """
    outcome = Rotated(lowered, tuple(norms), leeway)
    if not config.rotates or data is None:
        return outcome
    with clock.step("rotate") as advance:
        outcome = turned_to_lengths(config, outcome, data, advance, checkpoint)
        outcome = turned_to_axes(config, outcome, data, advance, checkpoint)
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

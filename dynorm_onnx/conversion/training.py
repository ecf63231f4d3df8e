"""The training of "distil": a converted model towards the original, and back to parameters of the file."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dynorm_onnx.calibration.data import CalibrationData, signature
from dynorm_onnx.calibration.norms.calibrate import Calibrated
from dynorm_onnx.conversion.trainable import require_torch
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.runtime.pieces import open_model
from dynorm_onnx.runtime.session import Provider

log = logging.getLogger(__name__)

_TELL_EVERY = 10.0  # seconds between lines of the log


@dataclasses.dataclass(frozen=True)
class Training:
    """How is trained; the options of the command line by the same names (docs/distil.md).

    `coupled` is how many coupled channels each function keeps, others fade while the model is trained; None leaves all.
    `block_steps` is how many steps each block is trained by itself before.
    """

    steps: int
    learning_rate: float
    train: str
    coupled: int | None
    block_steps: int
    checkpoint: Path | None
    seed: int
    provider: Provider

    def __call__(
        self,
        original: ir.Model,
        converted: ir.Model,
        norms: Sequence[LoweredNorm],
        calibrated: Calibrated,
        data: CalibrationData,
        progress: Callable[[int, int], None],
    ) -> tuple[Calibrated, dict[str, Any]]:
        """What training makes of `converted`, the model that `calibrated` gave: (Calibrated, JSON object of the run).

        `original` is the lowered model. Functions in bodies stay as they were fitted, and the training goes on around
        them. PyTorch is imported only here.

        Raises ModelError for an operator that cannot run in PyTorch, and what the training itself raises.
        """
        require_torch()
        from dynorm_onnx.pytorch.distil import distil_model

        tell = _Told(progress)
        trained = distil_model(
            original,
            converted,
            norms,
            data.calibration,
            open_model=lambda model: open_model(model, provider=self.provider, arena=False),
            steps=self.steps,
            learning_rate=self.learning_rate,
            train=self.train,
            logits=signature(converted).logits,
            checkpoint=self.checkpoint,
            seed=self.seed,
            progress=tell.step,
            coupled=self.coupled,
            block_steps=self.block_steps,
            block_progress=tell.block,
        )
        fits = dict(calibrated.fits)
        for norm in norms:
            if norm.node.graph is not original.graph:
                continue  # in a body all weights are constants
            parameters = trained.parameters[str(norm.node.name)]
            fits[norm.site_name] = dataclasses.replace(fits[norm.site_name], parameters=parameters)
        initializers = {**calibrated.initializers, **trained.initializers}
        return dataclasses.replace(calibrated, fits=fits, initializers=initializers), trained.as_dict()


class _Told:
    """Tells the progress of a training, and writes a line of the log now and then."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self._progress = progress
        self._last_line = time.monotonic()

    def step(self, told: Any) -> None:
        """After a step: a StepProgress."""
        self._progress(told.step, told.steps)
        if time.monotonic() - self._last_line > _TELL_EVERY or told.step in (1, told.steps):
            self._last_line = time.monotonic()
            line = "distil %d of %d: loss %.4f, %.0f tokens a second, %.0f s left"
            log.info(line, told.step, told.steps, told.loss, told.tokens_per_second, told.seconds_left)

    def block(self, told: Any) -> None:
        """After a block: a BlockProgress."""
        self._progress(told.done, told.blocks)
        line = "block %d of %d: relative squared error %.4g before, %.4g after, %.0f s left"
        log.info(line, told.done, told.blocks, told.run.before, told.run.after, told.seconds_left)

"""Method "distil" as a step of a conversion: what was reconstructed is trained, and becomes parameters again.

PyTorch is imported only when that step begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dynorm_onnx.calibration.data import CalibrationData, signature
from dynorm_onnx.calibration.norms import Calibrated
from dynorm_onnx.errors import ModelError, UsageError
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.norm_site import NormSite
from dynorm_onnx.runtime.arrays import Feeds
from dynorm_onnx.runtime.pieces import open_model
from dynorm_onnx.runtime.session import Provider

log = logging.getLogger(__name__)

RECONSTRUCTION_TOKENS = 32_768
"""Of the data of a distillation, so much is reconstructed on first: more gains little and costs time and memory."""

_TELL_EVERY = 10.0  # seconds between lines of the log


def require_torch() -> None:
    """Raises UsageError where PyTorch is not installed; to be asked before anything else is done."""
    if importlib.util.find_spec("torch") is None:
        raise UsageError("--method distil needs PyTorch: pip install dynorm-onnx[torch]")


def require_operators(model: ir.Model, sites: Sequence[NormSite]) -> None:
    """Raises ModelError where the model cannot run in PyTorch once the sites are replaced, naming all that is missing.

    To be asked before anything is calibrated. What a replaced norm is written with does not matter.
    """
    require_torch()
    from dynorm_onnx.pytorch.graph.known import require_known

    with _told_of_other_methods():
        require_known(model, [node for site in sites for node in site.nodes])


def require_functions(lowered: ir.Model, norms: Sequence[LoweredNorm], train: str) -> None:
    """Raises UsageError where the parameters of functions are all that is trained, and all lie in bodies."""
    if train == "norms" and all(norm.node.graph is not lowered.graph for norm in norms):
        raise UsageError(
            "--train norms: all norms lie in bodies of If, Loop or Scan, where functions stay as they are fitted; use "
            "--train all, or --method reconstruct or fit"
        )


def require_runs(lowered: ir.Model, feeds: Feeds) -> None:
    """Raises ModelError where the lowered model's graph fails in PyTorch: by an attribute, say, that is not supported.

    Runs it once, since that is found out in no other way; to be asked before minutes of calibration.
    """
    require_torch()
    from dynorm_onnx.pytorch.distil import run_once

    with _told_of_other_methods():
        run_once(lowered, feeds)


@contextlib.contextmanager
def _told_of_other_methods() -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise ModelError(f"--method distil: {error}. --method reconstruct and fit do without PyTorch") from error


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


def distil_calibrated(
    original: ir.Model,
    converted: ir.Model,
    norms: Sequence[LoweredNorm],
    calibrated: Calibrated,
    data: CalibrationData,
    *,
    provider: Provider,
    steps: int,
    learning_rate: float,
    train: str,
    checkpoint: Path | None,
    seed: int,
    progress: Callable[[int, int], None],
    coupled: int | None = None,
    block_steps: int = 0,
) -> tuple[Calibrated, dict[str, Any]]:
    """What training makes of `converted`, the model that `calibrated` gave: (Calibrated, JSON object of the run).

    `original` is the lowered model. `coupled` is how many coupled channels each function keeps, others fade while the
    model is trained; None leaves all. `block_steps` is how many steps each block is trained by itself before.

    Functions in bodies stay as they were fitted, and the training goes on around them.

    Raises ModelError for an operator that cannot run in PyTorch, and what the training itself raises.
    """
    require_torch()
    from dynorm_onnx.pytorch.distil import BlockProgress, StepProgress, distil_model

    last_line = time.monotonic()

    def tell(told: StepProgress) -> None:
        nonlocal last_line
        progress(told.step, told.steps)
        if time.monotonic() - last_line > _TELL_EVERY or told.step in (1, told.steps):
            last_line = time.monotonic()
            line = "distil %d of %d: loss %.4f, %.0f tokens a second, %.0f s left"
            log.info(line, told.step, told.steps, told.loss, told.tokens_per_second, told.seconds_left)

    def tell_block(told: BlockProgress) -> None:
        progress(told.done, told.blocks)
        line = "block %d of %d: relative squared error %.4g before, %.4g after, %.0f s left"
        log.info(line, told.done, told.blocks, told.run.before, told.run.after, told.seconds_left)

    trained = distil_model(
        original,
        converted,
        norms,
        data.calibration,
        open_model=lambda model: open_model(model, provider=provider, arena=False),
        steps=steps,
        learning_rate=learning_rate,
        train=train,
        logits=signature(converted).logits,
        checkpoint=checkpoint,
        seed=seed,
        progress=tell,
        coupled=coupled,
        block_steps=block_steps,
        block_progress=tell_block,
    )
    fits = dict(calibrated.fits)
    for norm in norms:
        if norm.node.graph is not original.graph:
            continue  # in a body all weights are constants
        parameters = trained.parameters[str(norm.node.name)]
        fits[norm.site_name] = dataclasses.replace(fits[norm.site_name], parameters=parameters)
    initializers = {**calibrated.initializers, **trained.initializers}
    return dataclasses.replace(calibrated, fits=fits, initializers=initializers), trained.as_dict() | {"kept": True}

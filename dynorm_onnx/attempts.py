"""One conversion of a lowered model: calibrate, rewrite, validate; distilled or folded where that was asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from dynorm_onnx.calibration.checkpoint import Checkpoint, digest_of
from dynorm_onnx.calibration.data import CalibrationData, part_like, signature
from dynorm_onnx.calibration.fit import Fit
from dynorm_onnx.calibration.fit_rows import Leeway
from dynorm_onnx.calibration.norms import Calibrated, calibrate_norms
from dynorm_onnx.calibration.reconstruct import reconstruct
from dynorm_onnx.calibration.solved import Known
from dynorm_onnx.config import ConvertConfig
from dynorm_onnx.distillation import begins_fitted, distil_calibrated, is_worse, reconstruction_batches
from dynorm_onnx.folding import weights_folded
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.graph import model_io
from dynorm_onnx.graph.fold import Folds
from dynorm_onnx.graph.inline import inlined
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.output_kind import output_kinds
from dynorm_onnx.graph.rewrite import drop_unused_functions, replace, set_initializers
from dynorm_onnx.graph.separate_attention import separate_attention
from dynorm_onnx.graph.trim_bodies import trimmed
from dynorm_onnx.progress import StepClock
from dynorm_onnx.runtime.arrays import Feeds
from dynorm_onnx.runtime.pieces import open_for_batches
from dynorm_onnx.runtime.validate import Validation, validate

METHODS: dict[str, Callable[..., Calibrated]] = {"reconstruct": reconstruct, "fit": calibrate_norms}


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One conversion, with some of the norms kept or none."""

    calibrated: Calibrated | None  # None for an exact rewrite
    converted: ir.Model
    validation: Validation | None
    distillation: Mapping[str, Any] | None = None  # the JSON object of the run


def attempt(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    data: CalibrationData | None,
    leeway: Mapping[str, Leeway],
    in_bodies: Mapping[str, Fit],
    clock: StepClock,
    checkpoint: Checkpoint,
) -> Attempt:
    """The lowered model with these norms replaced by the method of the config; those in bodies are fitted already."""
    calibrated = None
    if config.to != "rmsnorm" and data is not None:
        with clock.step("calibrate") as advance:
            method, batches = config.method, data.calibration
            if method == "distil":
                couples = any(part.most_coupled for part in leeway.values())
                fitted = not config.is_bounded and (couples or begins_fitted(lowered, norms, config.train))
                method, batches = "fit" if fitted else "reconstruct", reconstruction_batches(data)
            part = f"{method} of {sorted(norm.site_name for norm in norms)} on {digest_of(batches)}"
            known = Known(checkpoint, part)
            calibrated = METHODS[method](
                lowered, norms, REGISTRY[config.to], batches, advance, leeway, in_bodies, known
            )
    with clock.step("rewrite"):
        converted = rewritten(config, lowered, norms, calibrated)
    if config.method == "distil" and not config.is_bounded:
        return Attempt(calibrated, converted, None)  # judged when it is trained
    with clock.step("validate") as advance:
        validation = validated(config, converted, data, advance) if config.validate else None
    return Attempt(calibrated, converted, validation)


def distilled(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    outcome: Attempt,
    data: CalibrationData | None,
    clock: StepClock,
) -> Attempt:
    """The outcome trained towards the original, where that was asked for, or as it was before if the training has made
    it worse. The norms to keep are chosen before: a training for every trial of a bound would cost too much."""
    if config.method != "distil" or outcome.calibrated is None or data is None:
        return outcome
    with clock.step("distil") as advance:
        calibrated, run = distil_calibrated(
            lowered,
            outcome.converted,
            norms,
            outcome.calibrated,
            data,
            provider=config.provider,
            steps=config.steps,
            learning_rate=config.learning_rate,
            train=config.train,
            checkpoint=config.checkpoint_path,
            seed=config.seed,
            progress=advance,
            coupled=config.coupled,
            block_steps=config.block_steps,
        )
    if is_worse(run, fades=_fades(outcome.calibrated, config.coupled)):
        run, calibrated = {**run, "kept": False}, outcome.calibrated
    converted = rewritten(config, lowered, norms, calibrated)
    with clock.step("validate") as advance:
        validation = validated(config, converted, data, advance) if config.validate else None
    return Attempt(calibrated, converted, validation, run)


def _fades(calibrated: Calibrated, coupled: int | None) -> bool:
    """Whether a training has had to let coupled channels go."""
    couplings = [fitted.parameters.coupling for fitted in calibrated.fits.values()]
    return coupled is not None and any(own is not None and len(own.channels) > coupled for own in couplings)


def with_weights_folded(
    config: ConvertConfig,
    norms: Sequence[LoweredNorm],
    outcome: Attempt,
    data: CalibrationData | None,
    clock: StepClock,
) -> tuple[Attempt, Folds]:
    """The outcome with the replacements' weights folded, where that was asked for, and validated as it then is."""
    with clock.step("fold"):
        folds = weights_folded(config, outcome.converted, norms)
    if folds.done and config.validate:
        with clock.step("validate") as advance:
            outcome = dataclasses.replace(outcome, validation=validated(config, outcome.converted, data, advance))
    return outcome, folds


def rewritten(
    config: ConvertConfig, lowered: ir.Model, norms: Sequence[LoweredNorm], calibrated: Calibrated | None
) -> ir.Model:
    """A copy of the lowered model with these norms replaced; an exact copy where nothing was calibrated."""
    converted = model_io.clone(lowered)
    if calibrated is not None:
        for norm in norms:
            replace(converted, norm, config.to, calibrated.fits[norm.site_name].parameters)
        set_initializers(converted, calibrated.initializers)
        drop_unused_functions(converted)
    return converted


def as_written(config: ConvertConfig, converted: ir.Model) -> ir.Model:
    """The model as the file will hold it: with the functions, as short as can be, or, inlined, without; fused attention
    as it is fastest."""
    if config.inline:
        return inlined(converted)
    written = trimmed(converted)
    if config.optimize == "ort":
        separate_attention(written)
    return written


def validated(
    config: ConvertConfig, converted: ir.Model, data: CalibrationData | None, progress: Callable[[int, int], None]
) -> Validation | None:
    """Converted against original on held-out samples; None without data."""
    return None if data is None else _compared(config, converted, data.validation, data.vocabulary, progress)


def with_calibration_text(
    config: ConvertConfig, outcome: Attempt, data: CalibrationData | None, clock: StepClock
) -> Attempt:
    """The outcome with the same measures of calibration data, at most as much of it as was held out: where the two
    part, the parameters suit what they were fitted on and little else. Unchanged where nothing was fitted."""
    if outcome.validation is None or outcome.calibrated is None or data is None:
        return outcome
    with clock.step("validate") as advance:
        part = part_like(data.calibration, data.validation, signature(outcome.converted))
        there = _compared(config, outcome.converted, part, data.vocabulary, advance)
    return dataclasses.replace(outcome, validation=dataclasses.replace(outcome.validation, on_calibration=there))


def _compared(
    config: ConvertConfig,
    converted: ir.Model,
    batches: Sequence[Feeds],
    vocabulary: int | None,
    progress: Callable[[int, int], None],
) -> Validation:
    models = (config.model, as_written(config, converted))
    before, after = (open_for_batches(model, provider=config.provider) for model in models)
    kinds = output_kinds(converted.graph)
    return validate(before, after, batches, vocabulary=vocabulary, kinds=kinds, progress=progress)

"""The way through: load, find, lower, calibrate, rewrite, validate, time, save, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from dynorm_onnx.calibration.data import CalibrationData, load_calibration
from dynorm_onnx.calibration.norms import Calibrated, calibrate_norms
from dynorm_onnx.config import ConvertConfig, check_choice
from dynorm_onnx.errors import BoundError
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.graph import model_io
from dynorm_onnx.graph.lower import LoweredNorm, lower
from dynorm_onnx.graph.rewrite import replace
from dynorm_onnx.graph.select import select
from dynorm_onnx.graph.sites import find_sites
from dynorm_onnx.progress import Progress, StepClock, no_progress
from dynorm_onnx.report import Report, build_report
from dynorm_onnx.runtime.session import make_session, run_model
from dynorm_onnx.runtime.timing import Timing
from dynorm_onnx.runtime.validate import Validation, validate
from dynorm_onnx.runtime.variants import make_variants, time_model

TARGETS = (*REGISTRY, "rmsnorm")
METHODS: dict[str, Callable[..., Calibrated]] = {"fit": calibrate_norms}


def convert_model(
    model: str | os.PathLike[str], *, progress: Progress = no_progress, **knobs: Any
) -> Report:
    """Convert a model file; the knobs are those of ConvertConfig, which documents them.

    Returns the Report. Raises the errors of dynorm_onnx.errors, and then nothing was written.
    """
    config = ConvertConfig.of(model, **knobs)
    check_choice("--to", config.to, TARGETS)
    clock = StepClock(progress)
    with clock.step("find"):
        original = model_io.load(config.model)
        prepared = model_io.prepare(original)
        found = find_sites(prepared, run=run_model)
        chosen, kept = select(found, config.only, config.keep)
    if config.dry_run:
        return build_report(config, found, kept, clock)
    with clock.step("data"):
        model_io.require_weights(original)
        data = _data(config, original, progress)
    with clock.step("calibrate") as advance:
        norms = lower(prepared, chosen)
        calibrated = _calibrate(config, prepared, norms, data, advance)
    with clock.step("rewrite"):
        converted = _rewrite(config, prepared, norms, calibrated)
    with clock.step("validate"):
        validation = _validate(config, converted, data)
    with clock.step("time"):
        timing = _time(config, converted, data)
    with clock.step("save"):
        model_io.save(converted, config.output_path)
    return build_report(config, found, kept, clock, data, calibrated, validation, timing)


def _data(config: ConvertConfig, original: ir.Model, progress: Progress) -> CalibrationData | None:
    """None where nothing would look at it: an exact rewrite, neither validated nor timed."""
    if config.to == "rmsnorm" and not (config.validate or config.time):
        return None
    return load_calibration(
        original,
        config.data,
        session=lambda: make_session(config.model, provider=config.provider),
        tokenizer=config.tokenizer,
        samples=config.samples,
        max_length=config.max_length,
        seed=config.seed,
        folder=config.model.parent,
        progress=lambda done, total: progress("data", done, total),
    )


def _calibrate(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    data: CalibrationData | None,
    advance: Callable[[int, int], None],
) -> Calibrated | None:
    """None for `--to rmsnorm`, which has nothing to fit."""
    if config.to == "rmsnorm" or data is None:
        return None
    return METHODS[config.method](lowered, norms, REGISTRY[config.to], data.calibration, advance)


def _rewrite(
    config: ConvertConfig, lowered: ir.Model, norms: Sequence[LoweredNorm], calibrated: Calibrated | None
) -> ir.Model:
    converted = model_io.clone(lowered)
    if calibrated is not None:
        for norm in norms:
            replace(converted, norm, config.to, calibrated.fits[norm.site_name].parameters)
    return converted


def _validate(config: ConvertConfig, converted: ir.Model, data: CalibrationData | None) -> Validation | None:
    """Raises BoundError where a bound was asked for and is not met."""
    if not config.validate or data is None:
        return None
    sessions = [make_session(model, provider=config.provider) for model in (config.model, converted)]
    validation = validate(*sessions, data.validation, vocabulary=data.vocabulary)
    _check_bounds(config, validation)
    return validation


def _check_bounds(config: ConvertConfig, validation: Validation) -> None:
    if config.max_kl is not None:
        if validation.quality is None:
            raise BoundError(f"--max-kl {config.max_kl}: the model has no output of logits; use --max-error")
        if not validation.quality.kl_mean <= config.max_kl:
            raise BoundError(f"--max-kl {config.max_kl} is not met: the KL is {validation.quality.kl_mean:.4f}")
    if config.max_error is not None:
        worst = max(validation.outputs, key=lambda name: validation.outputs[name].relative_error)
        error = validation.outputs[worst].relative_error
        if not error <= config.max_error:
            raise BoundError(f"--max-error {config.max_error} is not met: output {worst!r} has {error:.4f}")


def _time(config: ConvertConfig, converted: ir.Model, data: CalibrationData | None) -> tuple[Timing, ...]:
    if not config.time or data is None:
        return ()
    feeds = data.validation[0]
    sessions = make_variants(config.model, converted, feeds, provider=config.provider)
    return time_model(sessions, feeds, provider=config.provider)

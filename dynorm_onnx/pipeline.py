"""The way through: load, find, lower, calibrate, rewrite, validate, time, save, report."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from dynorm_onnx.bounds import Met, keep_costliest
from dynorm_onnx.calibration.data import CalibrationData, load_calibration
from dynorm_onnx.calibration.norms import Calibrated, calibrate_norms
from dynorm_onnx.calibration.reconstruct import reconstruct
from dynorm_onnx.config import ConvertConfig, check_choice
from dynorm_onnx.distillation import distil_calibrated, reconstruction_batches, require_torch
from dynorm_onnx.errors import BoundError, ModelError
from dynorm_onnx.folding import centring_folded, weights_folded
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.graph import model_io
from dynorm_onnx.graph.fold import Folds
from dynorm_onnx.graph.linear import find_linear_layers
from dynorm_onnx.graph.lower import LoweredNorm, lower
from dynorm_onnx.graph.rewrite import count_replacements, drop_unused_functions, replace, set_initializers
from dynorm_onnx.graph.select import select
from dynorm_onnx.graph.sites import find_sites
from dynorm_onnx.progress import Progress, StepClock, no_progress
from dynorm_onnx.report import Report, build_report
from dynorm_onnx.report.evidence import Evidence, gather_evidence
from dynorm_onnx.report.html import require_html, write_html
from dynorm_onnx.runtime.fuse import fuse_for_ort, same_outputs
from dynorm_onnx.runtime.pieces import open_model
from dynorm_onnx.runtime.session import make_session, run_model
from dynorm_onnx.runtime.timing import Timing
from dynorm_onnx.runtime.validate import Validation, validate
from dynorm_onnx.runtime.variants import make_variants, time_model

TARGETS = (*REGISTRY, "rmsnorm")
METHODS: dict[str, Callable[..., Calibrated]] = {
    "reconstruct": reconstruct,
    "fit": calibrate_norms,
    "distil": reconstruct,  # that is what it begins with
}
COST_BATCHES = 2  # held-out batches on which the cost of each single norm is measured


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One conversion, with some of the norms kept or none."""

    calibrated: Calibrated | None  # None for an exact rewrite
    converted: ir.Model
    validation: Validation | None
    distillation: Mapping[str, Any] | None = None  # the JSON object of the run


def convert_model(model: str | os.PathLike[str], *, progress: Progress = no_progress, **knobs: Any) -> Report:
    """Convert a model file; the knobs are those of ConvertConfig, which documents them.

    Returns the Report. Raises the errors of dynorm_onnx.errors, and then nothing was written.
    """
    config = ConvertConfig.of(model, **knobs)
    check_choice("--to", config.to, TARGETS)
    if config.method == "distil":
        require_torch()
    if config.report is not None:
        require_html(config.report)
    clock = StepClock(progress)
    with clock.step("find"):
        original = model_io.load(config.model)
        prepared = model_io.prepare(fuse_for_ort(original) if config.optimize == "ort" else original)
        found = find_sites(prepared, run=run_model)
        chosen, kept = select(found, config.only, config.keep, replaced=count_replacements(original))
    if config.dry_run:
        return _told(config, build_report(config, found, kept, clock))
    model_io.require_weights(original)
    model_io.require_output(original, config.output_path)
    with clock.step("data"):
        data = _data(config, original, progress)
        _require_same_outputs(config, prepared, data)
    norms = lower(prepared, chosen)
    with clock.step("fold"):
        norms, folds = centring_folded(config, prepared, norms, found)
    met = _within_bounds(config, prepared, norms, data, clock)
    kept |= {name: f"kept for the bound: its replacement costs {cost:.2g} of it" for name, cost in met.kept.items()}
    outcome = _distilled(config, prepared, [n for n in norms if n.site_name not in met.kept], met.outcome, data, clock)
    outcome, weight_folds = _weights_folded(config, norms, outcome, data, clock)
    with clock.step("time"):
        timing = _time(config, outcome.converted, data)
    evidence = _evidence(config, prepared, norms, outcome.calibrated, data, clock)
    with clock.step("save"):
        model_io.save(outcome.converted, config.output_path)
        if outcome.distillation is not None:
            config.checkpoint_path.unlink(missing_ok=True)
    report = build_report(
        config, found, kept, clock, data, outcome.calibrated, outcome.validation, timing, outcome.distillation,
        folds + weight_folds,
    )  # fmt: skip
    return _told(config, report, evidence)


def _told(config: ConvertConfig, report: Report, evidence: Evidence | None = None) -> Report:
    """The report, written as a page too where one was asked for."""
    if config.report is not None:
        write_html(report, config.report, evidence)
    return report


def _evidence(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    calibrated: Calibrated | None,
    data: CalibrationData | None,
    clock: StepClock,
) -> Evidence | None:
    """For the pictures of the page; None where nobody asked for one or nothing was fitted."""
    if config.report is None or calibrated is None or data is None:
        return None
    with clock.step("evidence") as advance:
        return gather_evidence(lowered, norms, REGISTRY[config.to], calibrated, data.validation, advance)


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


def _require_same_outputs(config: ConvertConfig, fused: ir.Model, data: CalibrationData | None) -> None:
    """Raises ModelError where the fusions of `--optimize ort` changed what the model computes."""
    if config.optimize == "none" or data is None:
        return
    before, after = (make_session(model, provider=config.provider) for model in (config.model, fused))
    if not same_outputs(before, after, data.validation[0]):
        raise ModelError(f"--optimize ort: onnxscript's fusions change the outputs of {config.model}; leave it out")


def _within_bounds(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    data: CalibrationData | None,
    clock: StepClock,
) -> Met[Attempt]:
    """The conversion, with as many norms kept as --max-kl and --max-error ask for; BoundError if all must be."""

    def attempt(kept: frozenset[str]) -> Attempt:
        return _attempt(config, lowered, [norm for norm in norms if norm.site_name not in kept], data, clock)

    if config.max_kl is None and config.max_error is None:
        return Met(attempt(frozenset()), {})
    met = keep_costliest(
        attempt,
        damage=lambda outcome: _excess(config, outcome.validation),
        costs=lambda outcome: _costs(config, lowered, norms, outcome, data, clock),
        bound=1.0,
    )
    if met is None:
        bounds = (("--max-kl", config.max_kl), ("--max-error", config.max_error))
        asked = " and ".join(f"{knob} {value}" for knob, value in bounds if value is not None)
        raise BoundError(f"{asked} cannot be met, even with only the least costly of {len(norms)} norms replaced")
    return met


def _attempt(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    data: CalibrationData | None,
    clock: StepClock,
) -> Attempt:
    calibrated = None
    if config.to != "rmsnorm" and data is not None:
        with clock.step("calibrate") as advance:
            batches = reconstruction_batches(data) if config.method == "distil" else data.calibration
            calibrated = METHODS[config.method](lowered, norms, REGISTRY[config.to], batches, advance)
    with clock.step("rewrite"):
        converted = _rewritten(config, lowered, norms, calibrated)
    with clock.step("validate"):
        validation = _validate(config, converted, data) if config.validate else None
    return Attempt(calibrated, converted, validation)


def _distilled(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    outcome: Attempt,
    data: CalibrationData | None,
    clock: StepClock,
) -> Attempt:
    """The outcome trained towards the original, where that was asked for. The norms to keep are chosen before:
    a training for every trial of a bound would cost too much."""
    if config.method != "distil" or outcome.calibrated is None or data is None:
        return outcome
    with clock.step("distil") as advance:
        calibrated, run = distil_calibrated(
            outcome.converted,
            norms,
            outcome.calibrated,
            open_model(config.model, provider=config.provider),
            data,
            steps=config.steps,
            train=config.train,
            checkpoint=config.checkpoint_path,
            seed=config.seed,
            progress=advance,
        )
    converted = _rewritten(config, lowered, norms, calibrated)
    with clock.step("validate"):
        validation = _validate(config, converted, data) if config.validate else None
    return Attempt(calibrated, converted, validation, run)


def _rewritten(
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


def _weights_folded(
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
        with clock.step("validate"):
            outcome = dataclasses.replace(outcome, validation=_validate(config, outcome.converted, data))
    return outcome, folds


def _validate(config: ConvertConfig, converted: ir.Model, data: CalibrationData | None) -> Validation | None:
    if data is None:
        return None
    before, after = (open_model(model, provider=config.provider) for model in (config.model, converted))
    return validate(before, after, data.validation, vocabulary=data.vocabulary)


def _excess(config: ConvertConfig, validation: Validation | None) -> float:
    """The damage in units of what the bounds allow; at most 1 where they are met."""
    assert validation is not None  # ConvertConfig refuses a bound without validation
    excess = 0.0
    if config.max_kl is not None:
        if validation.quality is None:
            raise BoundError(f"--max-kl {config.max_kl}: the model has no output of logits; use --max-error")
        excess = max(excess, validation.quality.kl_mean / config.max_kl)
    if config.max_error is not None:
        worst = max(error.relative_error for error in validation.outputs.values())
        excess = max(excess, worst / config.max_error)
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
    original = open_model(config.model, provider=config.provider)
    batches, vocabulary = data.validation[:COST_BATCHES], data.vocabulary

    def excess(model: ir.Model) -> float:
        session = open_model(model, provider=config.provider)
        return _excess(config, validate(original, session, batches, vocabulary=vocabulary))

    every = excess(outcome.converted)
    costs: dict[str, float] = {}
    with clock.step("costs") as advance:
        for done, norm in enumerate(norms):
            others = [other for other in norms if other is not norm]
            weights = {
                name: array for name, array in calibrated.initializers.items() if name not in readers[norm.site_name]
            }
            back = _rewritten(config, lowered, others, dataclasses.replace(calibrated, initializers=weights))
            costs[norm.site_name] = every - excess(back)
            advance(done + 1, len(norms))
    return costs


def _time(config: ConvertConfig, converted: ir.Model, data: CalibrationData | None) -> tuple[Timing, ...]:
    if not config.time or data is None:
        return ()
    feeds = data.validation[0]
    sessions = make_variants(config.model, converted, feeds, provider=config.provider)
    return time_model(sessions, feeds, provider=config.provider)

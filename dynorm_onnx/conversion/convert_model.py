"""The way through: load, find, fold, rotate, calibrate, rewrite, validate, time, save, report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from dynorm_onnx.calibration.checkpoint import Checkpoint
from dynorm_onnx.calibration.data import CalibrationData
from dynorm_onnx.calibration.norms.look import Look, look
from dynorm_onnx.calibration.rotation.outcome import NO_ROTATIONS, Rotations
from dynorm_onnx.config import ConvertConfig, check_choice
from dynorm_onnx.conversion.attempt import Attempt, Calibration, Outcome, Strategy, convert_all
from dynorm_onnx.conversion.checkpoint import going_on
from dynorm_onnx.conversion.data import DataWanted, load_data, load_proof
from dynorm_onnx.conversion.distilled import beginning, convert_distilled
from dynorm_onnx.conversion.folds import centring_folded, parity_on_drawn
from dynorm_onnx.conversion.rotation import Rotated, rotated
from dynorm_onnx.conversion.saved import put_in_place
from dynorm_onnx.conversion.subject import Search, Subject, find_subject, require_opens, with_same_outputs
from dynorm_onnx.conversion.timed import time_both
from dynorm_onnx.conversion.trainable import require_runs, require_torch
from dynorm_onnx.conversion.training import Training
from dynorm_onnx.conversion.validator import Validator
from dynorm_onnx.conversion.within_bounds import Bounds, convert_within
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.fold import NO_FOLDS, fold_weights
from dynorm_onnx.graph.lower import LoweredNorm, lower, require_finite
from dynorm_onnx.graph.replace.inline import other_operators
from dynorm_onnx.graph.replace.written import as_written
from dynorm_onnx.progress import Progress, StepClock, no_progress
from dynorm_onnx.report import Report
from dynorm_onnx.report.build import build_report
from dynorm_onnx.report.evidence import Evidence, gather_evidence
from dynorm_onnx.report.html import require_html
from dynorm_onnx.runtime.arrays import Feeds
from dynorm_onnx.runtime.timing import Timing
from dynorm_onnx.runtime.user_libraries import registered

TARGETS = (*REGISTRY, "rmsnorm")


def convert_model(
    model: str | os.PathLike[str],
    *,
    progress: Progress = no_progress,
    ready: Callable[[Report], object] = lambda report: None,
    **knobs: Any,
) -> Report:
    """Convert a model file: every norm of it by an element-wise function, calibrated.

    Args:
        model: an ONNX file; it is not changed.
        progress: called with a step, how much of it is done and how much it has in all (0: not known).
        ready: called with the report before the files are moved into their place.
        knobs: the options of the command line by the same names, and ConvertConfig's defaults:

            to: "dyisru", "dyt", "derf", or "rmsnorm", which rewrites norms into their fused operators, exactly.
            output: default MODEL.TO.onnx beside the model.
            data: a file (.npz, a folder of .npz, .jsonl, .txt); an iterable of feeds, mappings of input names to
                arrays, tensors of PyTorch or, for sequences, lists of arrays, of the inputs' types and of shapes that
                they admit; a CalibrationDataReader; or "random". None: a causal language model writes its own text, for
                "rmsnorm" inputs are drawn, and any other model is refused.
            tokenizer: a tokenizer.json, for text; default: the one beside the model.
            samples, max_length: how many samples of how many tokens are used.
            method: "reconstruct", "fit" or "distil" (needs PyTorch).
            coupled: at most how many channels stay in each norm's sum; None: as many as the model needs.
            steps, learning_rate, train, block_steps, checkpoint: of "distil" (docs/distil.md).
            only, keep: which norms, by glob or "re:" expression over their names.
            max_kl, max_error: bounds on the mean KL to the original, in nats, and on the relative error of its outputs:
                norms that cost too much are kept.
            rotate, fold, fold_weights: the exact changes of the weights that go before or after.
            inline: write standard operators only, no functions.
            optimize: "auto", "none" or "ort": fuse attention for ONNX Runtime first.
            custom_op_library: files of the model's own operators, registered in every session.
            provider: "cpu" or "cuda".
            validate, time: whether the result is compared with the original, and timed.
            dry_run: list the norms, write nothing.
            report: an HTML page to write; needs the [report] extra.
            seed: of everything random.

    Returns:
        The report; its as_dict() is the JSON object that docs/report.md documents.

    Where this raises, and where `ready` does, nothing was written.

    Raises:
        UsageError: a knob makes no sense, is not known, or the output cannot be written.
        ModelError: the model cannot be read, is incomplete, or uses what cannot be handled.
        DataError: the data cannot be read or does not fit the model's inputs.
        NoSiteError: there is no norm that could be replaced.
        BoundError: no conversion meets a bound.
        ProviderError: the provider is not there, or did not take the nodes that it should.
    """
    config = ConvertConfig.of(model, **knobs)
    check_choice("--to", config.to, TARGETS)
    if config.distils:
        require_torch()
    if config.report is not None:
        require_html(config.report)
    clock = StepClock(progress)
    with registered(config.custom_op_library):
        with clock.step("find"):
            original = model_io.load(config.model)
            subject = find_subject(original, _search(config))
        if config.dry_run:
            config = dataclasses.replace(config, optimize=subject.optimize)
            return put_in_place(build_report(config, subject.found, subject.kept, clock), config.report, ready)
        model_io.require_weights(original)
        model_io.require_output(original, config.output_path)
        with going_on(config, original) as checkpoint:
            return _convert(config, original, subject, checkpoint, clock, ready)


def _convert(
    config: ConvertConfig,
    original: ir.Model,
    subject: Subject,
    checkpoint: Checkpoint,
    clock: StepClock,
    ready: Callable[[Report], object],
) -> Report:
    """From what was found in the original to the files in their place."""
    with clock.step("data") as advance:
        require_opens(original, config.model, config.provider)
        data, notes = _data(config, subject.model, checkpoint, advance)
        subject = with_same_outputs(original, subject, data, config.provider)
    config, notes = dataclasses.replace(config, optimize=subject.optimize), notes + subject.notes
    lowered, norms = subject.model, lower(subject.model, subject.chosen)
    _require_replaceable(config, lowered, norms, data)
    with clock.step("fold"):
        parity, folds = parity_on_drawn(config.seed, config.provider), NO_FOLDS
        if config.fold:
            reductions = config.is_exact
            norms, folds = centring_folded(lowered, norms, subject.found, parity, reductions=reductions)
    attempt, kept, rotations = _attempt(config, lowered, norms, data, clock, checkpoint)
    outcome = _strategy(config, data)(attempt)
    if config.fold_weights:
        with clock.step("fold"):
            weight_folds = fold_weights(outcome.converted, outcome.norms, parity)
        folds += weight_folds
        if weight_folds.done:  # not the model that was validated
            outcome = dataclasses.replace(outcome, validation=None)
    outcome = attempt.judged_both_ways(outcome)
    written = _written(config)(outcome.converted)
    timing: tuple[Timing, ...] = ()
    why_not: tuple[str, ...] = ()
    if config.time and data is not None:
        with clock.step("time"):
            timing, why_not = time_both(
                config.model, original, written, data.validation[0], clock.total, config.provider, subject.fused
            )
    evidence = _evidence(config, attempt, outcome, data, clock)
    with contextlib.ExitStack() as files:
        with clock.step("save"):
            place = files.enter_context(model_io.staged(written, config.output_path))
        report = build_report(
            config, subject.found, {**subject.kept, **kept, **outcome.kept_for_the_bound}, clock, data,
            outcome.calibrated, outcome.validation, timing, outcome.distillation, folds, rotations,
            notes + why_not + model_io.left_out(original) + _not_standard(config, written), checkpoint.reused,
        )  # fmt: skip
        put_in_place(report, config.report, ready, evidence, place)
    if outcome.distillation is not None:
        config.checkpoint_path.unlink(missing_ok=True)
    return report


def _search(config: ConvertConfig) -> Search:
    return Search(
        config.model,
        fuse=config.optimize if config.fuses else "none",
        only=config.only,
        keep=config.keep,
        exact=config.is_exact,
        inline=config.inline,
        trained=config.distils and not config.dry_run,
    )


def _data(
    config: ConvertConfig, prepared: ir.Model, checkpoint: Checkpoint, progress: Callable[[int, int], None]
) -> tuple[CalibrationData | None, tuple[str, ...]]:
    """The data, or None where nothing would look at it; and what the user must be told."""
    wanted = DataWanted(
        config.model, config.data, config.tokenizer, config.samples, config.max_length, config.seed, config.provider
    )
    if not config.is_exact:
        return load_data(wanted, prepared, checkpoint, progress), ()
    if not (config.validate or config.time):
        return None, ()
    return load_proof(wanted, prepared, progress, needed=config.is_bounded or config.optimize == "ort")


def _require_replaceable(
    config: ConvertConfig, lowered: ir.Model, norms: Sequence[LoweredNorm], data: CalibrationData | None
) -> None:
    """Raises what the norms' weights or the training would raise after minutes of calibration."""
    if not config.is_exact:
        require_finite(norms)
    if config.distils and data is not None:
        require_runs(lowered, data.calibration[0])


def _attempt(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    data: CalibrationData | None,
    clock: StepClock,
    checkpoint: Checkpoint,
) -> tuple[Attempt, Mapping[str, str], Rotations]:
    """What converts any of these norms, why others are kept, by site, and the streams that were rotated before."""
    validator = None
    if config.validate and data is not None:
        validator = Validator(config.model, data, config.provider, _written(config))
    if config.is_exact or data is None:
        return Attempt(lowered, tuple(norms), None, validator, clock), {}, NO_ROTATIONS
    function, coupled, trained = REGISTRY[config.to], config.coupled, config.distils
    with clock.step("look") as advance:
        looked = functools.partial(look, lowered, norms, function, data.calibration, advance)
        tree = checkpoint.once("look", lambda: looked(coupled=coupled, fades=trained).tree())
        seen = Look.of(tree, norms)
    turned = Rotated(lowered, seen.norms, seen.leeway)
    if config.rotate:
        turned = rotated(
            turned, data,
            function=function, trained=trained, coupled=coupled, seed=config.seed, provider=config.provider,
            clock=clock, checkpoint=checkpoint,
        )  # fmt: skip
    method: str = config.method
    batches: Sequence[Feeds] = data.calibration
    if trained:
        method, batches = beginning(turned, data, config.train, bounded=config.is_bounded)
    calibration = Calibration(config.to, method, batches, turned.leeway, seen.in_bodies, checkpoint)
    return Attempt(turned.model, turned.norms, calibration, validator, clock), seen.kept, turned.rotations


def _strategy(config: ConvertConfig, data: CalibrationData | None) -> Strategy:
    """All norms, or as many as keep within the bounds; then trained, where that was asked for."""
    strategy: Strategy = convert_all
    if config.is_bounded:
        strategy = functools.partial(convert_within, Bounds(config.max_kl, config.max_error))
    if config.distils and data is not None:
        training = Training(
            config.steps, config.learning_rate, config.train, config.coupled, config.block_steps,
            config.checkpoint_path, config.seed, config.provider,
        )  # fmt: skip
        strategy = functools.partial(convert_distilled, strategy, training, data)
    return strategy


def _written(config: ConvertConfig) -> Callable[[ir.Model], ir.Model]:
    return functools.partial(as_written, inline=config.inline, fused=config.optimize == "ort")


def _evidence(
    config: ConvertConfig, attempt: Attempt, outcome: Outcome, data: CalibrationData | None, clock: StepClock
) -> Evidence | None:
    """For the pictures of the page; None where nobody asked for one or nothing was fitted."""
    if config.report is None or outcome.calibrated is None or data is None:
        return None
    with clock.step("evidence") as advance:
        function, calibrated = REGISTRY[config.to], outcome.calibrated
        return gather_evidence(attempt.lowered, attempt.norms, function, calibrated, data.validation, advance)


def _not_standard(config: ConvertConfig, written: ir.Model) -> tuple[str, ...]:
    """What --inline could not make standard: operators that the original has itself."""
    others = other_operators(written) if config.inline else ()
    return (f"--inline: the original's own operators stay, not all runtimes have them: {', '.join(others)}",) * any(
        others
    )

"""The way through: load, find, lower, rotate, calibrate, rewrite, validate, time, save, report."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from dynorm_onnx.attempts import as_written, distilled, with_calibration_text, with_weights_folded
from dynorm_onnx.calibration.checkpoint import Checkpoint, digest_of
from dynorm_onnx.calibration.data import CalibrationData, load_calibration
from dynorm_onnx.calibration.look import Look, look
from dynorm_onnx.calibration.norms import Calibrated
from dynorm_onnx.config import ConvertConfig, check_choice
from dynorm_onnx.distillation import require_functions, require_runs, require_torch
from dynorm_onnx.errors import DataError, DynormError, NoMemoryError, UsageError
from dynorm_onnx.folding import centring_folded
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.graph import model_io
from dynorm_onnx.graph.inline import other_operators
from dynorm_onnx.graph.lower import LoweredNorm, lower, require_finite
from dynorm_onnx.progress import Progress, StepClock, no_progress
from dynorm_onnx.report import Report
from dynorm_onnx.report.build import build_report
from dynorm_onnx.report.evidence import Evidence, gather_evidence
from dynorm_onnx.report.html import require_html, staged_html
from dynorm_onnx.resume import checkpoint_of
from dynorm_onnx.rotation import rotated
from dynorm_onnx.runtime.memory import lack_of_memory, require_memory, session_bytes
from dynorm_onnx.runtime.pieces import open_for_batches
from dynorm_onnx.runtime.session import FATAL, make_session
from dynorm_onnx.runtime.timing import Timing
from dynorm_onnx.runtime.user_libraries import registered
from dynorm_onnx.runtime.variants import time_within
from dynorm_onnx.subject import Subject, find_subject, require_opens, with_same_outputs
from dynorm_onnx.within_bounds import within_bounds

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
    with registered(config.custom_op_library):
        return _convert(config, progress, ready)


def _convert(config: ConvertConfig, progress: Progress, ready: Callable[[Report], object]) -> Report:
    """convert_model() with its arguments in place."""
    check_choice("--to", config.to, TARGETS)
    if config.method == "distil":
        require_torch()
    if config.report is not None:
        require_html(config.report)
    clock = StepClock(progress)
    with clock.step("find"):
        original = model_io.load(config.model)
        subject = find_subject(config, original)
    if config.dry_run:
        return _put_in_place(config, build_report(subject.settled(config), subject.found, subject.kept, clock), ready)
    model_io.require_weights(original)
    model_io.require_output(original, config.output_path)
    with checkpoint_of(config, original) as checkpoint:
        try:
            report = _converted(config, original, subject, checkpoint, clock, ready, progress)
        except (UsageError, NoMemoryError):  # the output cannot be written, say: what was found is not lost
            raise
        except DynormError:
            checkpoint.remove()
            raise
        checkpoint.remove()
    return report


def _converted(
    config: ConvertConfig,
    original: ir.Model,
    subject: Subject,
    checkpoint: Checkpoint,
    clock: StepClock,
    ready: Callable[[Report], object],
    progress: Progress,
) -> Report:
    """The conversion of what was found in the original, written."""
    with clock.step("data"):
        require_opens(config, original)
        data, notes = _data(config, subject.model, checkpoint, progress)
        subject = with_same_outputs(config, original, subject, data)
    if data is not None:
        checkpoint.require(data=digest_of(data.calibration))
    config, notes = subject.settled(config), notes + subject.notes
    prepared, found, kept = subject.model, subject.found, dict(subject.kept)
    norms = lower(prepared, subject.chosen)
    if config.to != "rmsnorm":
        require_finite(norms)
    if config.distils and data is not None:
        require_runs(prepared, data.calibration[0])
    with clock.step("fold"):
        norms, folds = centring_folded(config, prepared, norms, found)
    seen = _look(config, prepared, norms, data, clock, checkpoint)
    kept |= seen.kept
    turned = rotated(config, prepared, seen.norms, data, seen.leeway, clock, checkpoint)
    prepared, norms = turned.model, turned.norms
    if config.distils:
        require_functions(prepared, norms, config.train)
    met = within_bounds(config, prepared, norms, data, turned.leeway, seen.in_bodies, clock, checkpoint)
    kept |= {name: f"kept for the bound: its replacement costs {cost:.2g} of it" for name, cost in met.kept.items()}
    outcome = distilled(config, prepared, [n for n in norms if n.site_name not in met.kept], met.outcome, data, clock)
    outcome, weight_folds = with_weights_folded(config, norms, outcome, data, clock)
    outcome = with_calibration_text(config, outcome, data, clock)
    written = as_written(config, outcome.converted)
    with clock.step("time"):
        timing, why_not = _time(config, original, written, data, clock.total, subject.fused)
    evidence = _evidence(config, prepared, norms, outcome.calibrated, data, clock)
    with contextlib.ExitStack() as files:
        with clock.step("save"):
            place = files.enter_context(model_io.staged(written, config.output_path))
        report = build_report(
            config, found, kept, clock, data, outcome.calibrated, outcome.validation, timing, outcome.distillation,
            folds + weight_folds, turned.rotations,
            notes + why_not + model_io.left_out(original) + _not_standard(config, written), checkpoint.reused,
        )  # fmt: skip
        _put_in_place(config, report, ready, evidence, place)
    if outcome.distillation is not None:
        config.checkpoint_path.unlink(missing_ok=True)
    return report


def _not_standard(config: ConvertConfig, written: ir.Model) -> tuple[str, ...]:
    """What --inline could not make standard: operators that the original has itself."""
    others = other_operators(written) if config.inline else ()
    return (f"--inline: the original's own operators stay, not all runtimes have them: {', '.join(others)}",) * any(
        others
    )


def _put_in_place(
    config: ConvertConfig,
    report: Report,
    ready: Callable[[Report], object],
    evidence: Evidence | None = None,
    place_model: Callable[[], None] = lambda: None,
) -> Report:
    """The report, told; then the model and the page, both written by then, under their names."""
    with contextlib.ExitStack() as files:
        page = None
        if config.report is not None:
            page = files.enter_context(staged_html(report, config.report, evidence))
        ready(report)
        place_model()
        if page is not None:
            page()
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


def _data(
    config: ConvertConfig, prepared: ir.Model, checkpoint: Checkpoint, progress: Progress
) -> tuple[CalibrationData | None, tuple[str, ...]]:
    """The data, or None where nothing would look at it: an exact rewrite, neither validated nor timed.

    None also where only the proof of an exact rewrite would look at it, none was given, and none can be drawn; then
    with what the user must be told.
    """
    if config.to == "rmsnorm" and not (config.validate or config.time):
        return None, ()
    try:
        return _load_data(config, prepared, checkpoint, progress), ()
    except DataError as error:
        if config.to != "rmsnorm" or config.data is not None or config.is_bounded or config.optimize == "ort":
            raise
        return None, (f"neither validated nor timed: {error}",)


def _load_data(
    config: ConvertConfig, prepared: ir.Model, checkpoint: Checkpoint, progress: Progress
) -> CalibrationData:
    return load_calibration(
        prepared,
        config.data,
        session=functools.partial(_session_to_write_with, config, prepared),
        tokenizer=config.tokenizer,
        samples=config.samples,
        max_length=config.max_length,
        seed=config.seed,
        folder=config.model.parent,
        drawn=config.to == "rmsnorm",  # nothing is fitted, so any input shows whether the outputs are the same
        trial=lambda optimization: open_for_batches(
            config.model, provider=config.provider, optimization=optimization, log_severity=FATAL
        ),
        progress=lambda done, total: progress("data", done, total),
        checkpoint=checkpoint,
    )


def _session_to_write_with(config: ConvertConfig, prepared: ir.Model) -> Any:
    """One of the whole model, for it is run once for every token."""
    if config.provider == "cpu":
        require_memory(session_bytes(prepared), "a session of the whole model, to write text with,", "give --data")
    return make_session(config.model, provider=config.provider)


def _look(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    data: CalibrationData | None,
    clock: StepClock,
    checkpoint: Checkpoint,
) -> Look:
    """What the original's activations tell; nothing where nothing is fitted."""
    if config.to == "rmsnorm" or data is None:
        return Look(tuple(norms))
    with clock.step("look") as advance:
        if (tree := checkpoint.get("look")) is not None:
            return Look.of(tree, norms)
        function, fades = REGISTRY[config.to], config.method == "distil"
        seen = look(lowered, norms, function, data.calibration, advance, coupled=config.coupled, fades=fades)
        checkpoint.put("look", seen.tree())
        return seen


def _time(
    config: ConvertConfig,
    original: ir.Model,
    converted: ir.Model,
    data: CalibrationData | None,
    seconds: float,
    fused: ir.Model | None,
) -> tuple[tuple[Timing, ...], tuple[str, ...]]:
    """The variants' times, measured in no more than about `seconds`: what the conversion has taken so far. None where
    whole models do not fit in memory, with what the user must be told."""
    if not config.time or data is None:
        return (), ()
    needed = 2 * (session_bytes(original) + session_bytes(converted)) if config.provider == "cpu" else 0
    lack = lack_of_memory(needed, "whole sessions of the variants")
    if lack is not None:
        return (), (f"not timed: {lack}",)
    feeds = data.validation[0]
    return time_within(config.model, converted, feeds, seconds, provider=config.provider, fused=fused), ()

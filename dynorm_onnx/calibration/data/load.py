"""Calibration data from wherever it comes: a file, a folder, Python, or the model itself."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.checkpoint import Checkpoint
from dynorm_onnx.calibration.data.arrays import join_samples, read_folder, read_iterable, read_npz
from dynorm_onnx.calibration.data.batches import COMPARED_LOGITS_BYTES, batch_rows
from dynorm_onnx.calibration.data.drawing import Progress
from dynorm_onnx.calibration.data.drawn_inputs import draw_samples, unbounded
from dynorm_onnx.calibration.data.missing import complete
from dynorm_onnx.calibration.data.records import read_lines, read_records, takes_records, text_input
from dynorm_onnx.calibration.data.sampling import sample_texts
from dynorm_onnx.calibration.data.sampling_cached import cache_grows
from dynorm_onnx.calibration.data.settings import read_settings
from dynorm_onnx.calibration.data.signature import ModelSignature, signature
from dynorm_onnx.calibration.data.text import load_encoder, read_jsonl, read_txt
from dynorm_onnx.calibration.data.trial import Opener, is_for_one_sample, why_not
from dynorm_onnx.calibration.data.windows import divide, held_out
from dynorm_onnx.errors import DataError, UsageError
from dynorm_onnx.runtime.arrays import Feeds
from dynorm_onnx.runtime.logits import LogitsOutput, is_causal

log = logging.getLogger(__name__)

RANDOM = "random"
"""The data that is none: inputs drawn at random."""

_RANDOM_INPUTS = (
    "the model was calibrated on random inputs: quality on real data will be lower than with samples of it (--data)"
)
_PROBE_LENGTH = 16
_TEXT = "text"  # of the checkpoint
_ONE_SAMPLE = "the data has a single sample, so the model was validated on what it was calibrated on"


@dataclasses.dataclass(frozen=True)
class CalibrationData:
    """Batches for a session: those to calibrate on and those held out."""

    calibration: tuple[Feeds, ...]
    validation: tuple[Feeds, ...]  # of other samples than calibration, unless there is only one
    source: str  # for people: "text train.txt", "text that the model wrote", "random inputs"
    samples: int  # in calibration
    tokens: int  # in calibration, padding not counted; 0 for a model without token ids
    vocabulary: int | None  # rows of the embedding that the token ids index
    warnings: tuple[str, ...]  # what the user must know about the data


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What is asked of every source."""

    graph: ir.Graph
    signature: ModelSignature
    rng: np.random.Generator
    samples: int  # for calibration
    length: int  # the longest row of token ids
    tokenizer: Path | None
    folder: Path | None

    @property
    def total(self) -> int:
        """Samples for calibration and validation together."""
        return self.samples + held_out(self.samples)

    @property
    def batches(self) -> int:
        """Samples for calibration, counted in batches where the model fixes their size."""
        return -(-self.samples // (self.signature.fixed_batch or 1))


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a source gave: samples of arrays, or rows of token ids."""

    source: str
    feeds: list[Feeds] | None = None
    rows: list[np.ndarray] | None = None
    warnings: tuple[str, ...] = ()
    is_drawn: bool = False
    is_run: bool = False  # by the model, many samples at once


def load_calibration(
    model: ir.Model,
    data: Any,
    *,
    session: Callable[[], Any],
    samples: int,
    max_length: int,
    seed: int,
    tokenizer: Path | None = None,
    folder: Path | None = None,
    drawn: bool = False,
    trial: Opener | None = None,
    progress: Progress = lambda done, total: None,
    checkpoint: Checkpoint | None = None,
) -> CalibrationData:
    """Batches to calibrate and to validate on, complete for the model's inputs.

    Args:
        model: as it will be calibrated; not changed.
        data: a .npz, .jsonl or .txt file, a folder of .npz files, feeds or an iterable of feeds, a
            CalibrationDataReader; RANDOM: inputs are drawn from the signature; or None: a causal language model
            writes text.
        session: makes an onnxruntime.InferenceSession of the model; called only without data, and only
            if the model has logits over the vocabulary of its tokens. MemoryError where there is no room for one.
        samples: at most so many for calibration; a fifth of that, but 256 at most, for validation.
        max_length: the most tokens in one sample; less where the model says that it takes less.
        seed: of everything random.
        tokenizer: a tokenizer.json; by default the one in `folder`.
        folder: that of the model, with its tokenizer.json and config.json if any.
        drawn: whether None means RANDOM for a model that writes no text. Right where the data decides nothing.
        trial: opens the model to find out whether it takes several samples at once; None: it is believed where it says
            so.
        progress: called while the model writes text.
        checkpoint: has the text that the model has written for a run that was cut, or will have it.

    Raises:
        UsageError: samples or max_length too small, a tokenizer is needed and not there, a file of
            another kind. DataError: the data cannot be read or does not fit the model, there is none for a model
            that writes no text, or the model fails on inputs drawn at random.
        ModelError: the model cannot be fed or run. MemoryError: what `session` raises.
    """
    if samples < 1 or max_length < 1:
        raise UsageError(f"--samples and --max-length must be at least 1, not {samples} and {max_length}")
    rng = np.random.default_rng(seed)
    what = signature(model)
    wanted = _Wanted(model.graph, what, rng, samples, _longest(what, folder, max_length), tokenizer, folder)
    if data is None:
        found = _without_data(wanted, session, progress, drawn, checkpoint or Checkpoint())
    else:
        found = _drawn(wanted) if _is_random(data) else _read(data, wanted)
    calibration, validation = _completed(found, wanted)
    if trial is not None and not found.is_run:
        if is_for_one_sample(trial, calibration, what):
            wanted = dataclasses.replace(wanted, signature=what.of_batches_of(1))
            calibration, validation = _completed(found, wanted)
        why = why_not(trial, calibration[0]) if found.is_drawn else None
        if why is not None:
            raise DataError(f"on inputs drawn at random the model does not run: {why}; {_asked_for(what)}")
    counts = [_count(feeds, what) for feeds in calibration]
    return CalibrationData(
        calibration=calibration,
        validation=validation,
        source=found.source,
        samples=sum(count for count, _ in counts),
        tokens=sum(count for _, count in counts),
        vocabulary=what.tokens.bound if what.tokens is not None else None,
        warnings=found.warnings + ((_ONE_SAMPLE,) if len(found.rows or found.feeds or ()) == 1 else ()),
    )


def _completed(found: _Found, wanted: _Wanted) -> tuple[tuple[Feeds, ...], tuple[Feeds, ...]]:
    """(calibration, validation), with all inputs of the model."""
    front, tail = _batches(found, wanted)
    return (
        tuple(complete(feeds, wanted.signature, wanted.rng) for feeds in front),
        tuple(complete(feeds, wanted.signature, wanted.rng) for feeds in tail),
    )


def _longest(what: ModelSignature, folder: Path | None, max_length: int) -> int:
    """The longest row that is asked for and that the model takes."""
    tables = [spec.bound for spec in what.with_role("position_ids")]
    limits = [max_length, what.fixed_length, what.longest, read_settings(folder).longest, *tables]
    return min(limit for limit in limits if limit)


def _batches(found: _Found, wanted: _Wanted) -> tuple[list[Feeds], list[Feeds]]:
    """(calibration, validation)."""
    if found.rows is not None:
        front, tail = divide(found.rows, wanted.samples)
        to_calibrate = batch_rows(front, wanted.signature)
        return to_calibrate, batch_rows(tail, wanted.signature, COMPARED_LOGITS_BYTES)
    first, last = divide(found.feeds or [], wanted.batches)
    return join_samples(first, wanted.signature), join_samples(last, wanted.signature)


def _count(feeds: Feeds, what: ModelSignature) -> tuple[int, int]:
    """(samples, tokens) of one complete batch."""
    tokens = what.tokens
    if tokens is not None:
        ids = feeds[tokens.name]
        masks = [feeds[spec.name] for spec in what.with_role("attention_mask")]
        mask = next((mask for mask in masks if mask.shape == ids.shape), None)
        return ids.shape[0] if ids.ndim > 1 else 1, ids.size if mask is None else int(np.count_nonzero(mask))
    for spec in what.inputs:
        if spec.batch_axis is not None:
            return feeds[spec.name].shape[spec.batch_axis], 0
    return 1, 0


def _read(data: Any, wanted: _Wanted) -> _Found:
    if not isinstance(data, str | os.PathLike):
        items = [data] if isinstance(data, Mapping) else data
        return _Found("samples given in Python", feeds=read_iterable(items, wanted.signature, wanted.total))
    path = Path(data)
    if os.path.isdir(path):
        samples = read_folder(path, wanted.signature, wanted.total, wanted.rng)
        return _Found(f"arrays in {path.name}", feeds=samples)
    if not os.path.isfile(path):  # also of a name that is too long for any file
        raise DataError(f"the data {path} does not exist")
    kind = path.suffix.lower()
    if kind == ".npz":
        return _Found(f"arrays {path.name}", feeds=read_npz(path, wanted.signature, wanted.rng))
    text = text_input(wanted.signature)
    if kind == ".txt" and text is not None:
        return _Found(f"lines of {path.name}", feeds=read_lines(path, text, wanted.signature, wanted.total))
    if kind == ".jsonl" and takes_records(wanted.signature):
        records = read_records(path, wanted.signature, wanted.total, wanted.rng)
        return _Found(f"samples {path.name}", feeds=records)
    if kind == ".txt":
        encoder = load_encoder(wanted.tokenizer, wanted.folder)
        return _Found(f"text {path.name}", rows=read_txt(path, encoder, wanted.total, wanted.length))
    if kind == ".jsonl":
        encoder_of = functools.cache(lambda: load_encoder(wanted.tokenizer, wanted.folder))
        rows = read_jsonl(path, encoder_of, wanted.total, wanted.length, wanted.rng)
        return _Found(f"samples {path.name}", rows=rows)
    raise UsageError(f"the data {path} must be .npz, .jsonl, .txt or a folder of .npz files")


def _without_data(
    wanted: _Wanted, session: Callable[[], Any], progress: Progress, drawn: bool, checkpoint: Checkpoint
) -> _Found:
    if wanted.signature.logits is not None and not takes_records(wanted.signature):
        text = checkpoint.get(_TEXT)
        if text is not None:
            wanted.rng.bit_generator.state = text["rng"]
            return _text_of_the_model(text["rows"])
        made = _opened(session, drawn)
        if made is not None and _writes(wanted, made):
            rows = _written(wanted, made, progress)
            checkpoint.put(_TEXT, {"rows": rows, "rng": wanted.rng.bit_generator.state})
            return _text_of_the_model(rows)
    if drawn:
        return _drawn(wanted)
    raise DataError(
        "the model writes no text that it could be calibrated on, and on random inputs a function fits that real data "
        f"need not suit: {_asked_for(wanted.signature)}, or --data {RANDOM} to see what random inputs lead to"
    )


def _opened(session: Callable[[], Any], drawn: bool) -> Any | None:
    """The session; None where there is no memory for it and inputs that are drawn do as well."""
    try:
        return session()
    except MemoryError as error:
        if not drawn:
            raise
        log.info("the inputs are drawn: %s", error)
        return None


def _asked_for(what: ModelSignature) -> str:
    inputs = "; ".join(f"{spec.name}: {spec.describe()}" for spec in what.inputs)
    return f"give samples of real data with --data ({inputs})"


def _is_random(data: Any) -> bool:
    return isinstance(data, str | os.PathLike) and os.fspath(data) == RANDOM and not os.path.exists(data)


def _drawn(wanted: _Wanted) -> _Found:
    count = wanted.batches + held_out(wanted.batches)
    samples = draw_samples(wanted.signature, wanted.graph, wanted.rng, count=count, length=wanted.length)
    warnings = [_RANDOM_INPUTS]
    guessed = unbounded(wanted.signature, wanted.graph, wanted.length)
    if guessed:
        warnings.append(f"nothing says how large the integers of {', '.join(guessed)} may be: only 0 and 1 were drawn")
    return _Found("random inputs", feeds=samples, warnings=tuple(warnings), is_drawn=True)


def _writes(wanted: _Wanted, session: Any) -> bool:
    """Whether the logits are predictions of the next token: those of a masked language model are not.

    A cache that grows says so; without one it is tried.
    """
    what = wanted.signature
    assert what.tokens is not None and what.logits is not None
    if cache_grows(what):
        return True
    length = what.fixed_length or min(_PROBE_LENGTH, wanted.length)
    ids = wanted.rng.integers(0, what.tokens.bound or 2, (what.fixed_batch or 1, length))
    feeds = complete({what.tokens.name: ids}, what, wanted.rng)
    return is_causal(session, feeds, LogitsOutput(what.logits, what.tokens.name, aligned=True))


def _text_of_the_model(rows: np.ndarray) -> _Found:
    return _Found("text that the model wrote", rows=list(rows), is_run=True)


def _written(wanted: _Wanted, session: Any, progress: Progress) -> np.ndarray:
    return sample_texts(
        wanted.signature,
        session,
        wanted.rng,
        count=wanted.total,
        length=wanted.length,
        first_token=_first_token(wanted),
        progress=progress,
    )


def _first_token(wanted: _Wanted) -> int | None:
    """What the files beside the model begin a text with, if there are any that say so."""
    first = read_settings(wanted.folder).first_token
    if first is not None:
        return first
    try:
        return next(iter(load_encoder(wanted.tokenizer, wanted.folder).prefix), None)
    except UsageError:  # no tokenizer, or no package to read it: it is not needed here
        return None

"""How far a converted model is from the original, measured on held-out samples."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from dynorm_onnx.errors import DataError
from dynorm_onnx.graph.values.output_kind import OutputKind
from dynorm_onnx.runtime.arrays import Feeds, is_float
from dynorm_onnx.runtime.classes import Telling, tells_classes
from dynorm_onnx.runtime.logits import CausalProbe, LogitsOutput, kept_positions, logits_output, token_input
from dynorm_onnx.runtime.measures import OutputError, OutputSums, PartQuality, TokenQuality, TokenSums
from dynorm_onnx.runtime.pieces import count_runs, run_batches

FAR_APART = 0.5
"""The relative error of probabilities from which on it is told: they are judged by their side of a half."""

APART = 1.3
"""Times that the damage on held-out data may be of that on calibration data: the parameters then suit the text that
they were fitted on rather than the language."""

_LEAST_KL, _LEAST_ERROR = 0.01, 0.01  # below it a ratio says nothing


@dataclasses.dataclass(frozen=True)
class Validation:
    """The measures of one converted model against its original."""

    samples: int
    outputs: dict[str, OutputError]
    quality: TokenQuality | None  # of the logits, where the model has an output of logits
    logits: str | None = None  # the name of that output
    on_calibration: Validation | None = None  # the same of a sample of what the model was calibrated on
    left_out: tuple[str, ...] = ()  # outputs that could not be compared, each with what it is: "ids (int64)"
    other_shapes: tuple[str, ...] = ()  # outputs of another shape than the original's: "y (in 2 of 3 batches: ...)"

    @property
    def is_finite(self) -> bool:
        """Whether the conversion made no NaN or infinity where the original has none."""
        return not self._broken() and (self.quality is None or math.isfinite(self.quality.kl_mean))

    @property
    def times_worse_than_on_calibration(self) -> float | None:
        """Damage on held-out data over that on calibration data: of the mean KL, without logits of the largest
        relative error. None where there is nothing to compare, or the damage is too small for it to matter."""
        if self.on_calibration is None:
            return None
        if self.quality is not None and self.on_calibration.quality is not None:
            here, there, least = self.quality.kl_mean, self.on_calibration.quality.kl_mean, _LEAST_KL
        else:
            here, there, least = self.largest_error, self.on_calibration.largest_error, _LEAST_ERROR
        return here / there if here > least and 0 < there < math.inf and math.isfinite(here) else None

    @property
    def largest_error(self) -> float:
        """The largest relative error of an output; infinite where one has another shape."""
        if self.other_shapes:
            return math.inf
        return max((error.relative_error for error in self.outputs.values()), default=0.0)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that must be shown beside the means."""
        found = [
            f"output {name}: the converted model yields NaN or infinity where the original does not"
            for name in self._broken()
        ]
        found += [
            f"output {name}: its probabilities differ by {error.relative_error:.2g} of their size; where all are on "
            "one side of a half, that no decision changes says little"
            for name, error in self.outputs.items()
            if error.classes == "probability" and FAR_APART < error.relative_error < math.inf
        ]
        if self.quality is not None and self.quality.worst_out_of_proportion:
            worst = self.quality.worst
            found.append(
                f"the worst token (sample {worst.sample}, position {worst.position}) has a KL of "
                f"{worst.kl:.3g} nats where 99 % of the tokens have at most {self.quality.kl_p99:.3g}"
            )
        if self.left_out:
            found.append(f"not compared, for they hold no floats: {', '.join(self.left_out)}")
        if self.other_shapes:
            found.append(
                "not compared, for how large they are follows from values and their shapes are not the original's: "
                + ", ".join(self.other_shapes)
            )
        times = self.times_worse_than_on_calibration
        if times is not None and times > APART:
            measure = "KL" if self.quality is not None else "relative error"
            found.append(
                f"the {measure} on held-out data is {_told(times)} times that on the calibration data: the model was "
                "fitted to too little of it; give more (--data, --samples)"
            )
        return tuple(found)

    def _broken(self) -> list[str]:
        return [name for name, error in self.outputs.items() if math.isinf(error.relative_error)]

    def as_dict(self) -> dict[str, Any]:
        """The JSON object "validation"; numbers that JSON does not have (NaN, infinity) become null."""
        shown: dict[str, Any] = {
            "samples": self.samples,
            "outputs": {
                name: {key: _json_value(value) for key, value in dataclasses.asdict(error).items()}
                for name, error in self.outputs.items()
            },
        }
        if self.left_out:
            shown["left_out"] = list(self.left_out)
        if self.other_shapes:
            shown["other_shapes"] = list(self.other_shapes)
        if self.quality is not None:
            shown |= _quality_dict(self.quality)
        if self.on_calibration is not None:
            shown["on_calibration"] = self.on_calibration.as_dict()
        return shown


def _quality_dict(quality: TokenQuality) -> dict[str, Any]:
    worst = {**dataclasses.asdict(quality.worst), "kl": _json_number(quality.worst.kl)}
    shown: dict[str, Any] = {
        "tokens": quality.tokens,
        "kl": {
            "mean": _json_number(quality.kl_mean),
            "median": _json_number(quality.kl_median),
            "p99": _json_number(quality.kl_p99),
            "worst": worst,
            "worst_out_of_proportion": quality.worst_out_of_proportion,
        },
        "top1_agreement": quality.top1_agreement,
    }
    if quality.loss_original is not None:
        shown["loss"] = _loss_dict(quality)
    if quality.first is not None and quality.others is not None:
        parts = {"first": quality.first, "others": quality.others}
        shown["by_position"] = {name: _part_dict(part) for name, part in parts.items()}
    return shown


def _part_dict(part: PartQuality) -> dict[str, Any]:
    return {
        "tokens": part.tokens,
        "kl": _json_number(part.kl_mean),
        "top1_agreement": part.top1_agreement,
        "loss": None if part.loss_original is None else _loss_dict(part),
    }


def _loss_dict(measured: TokenQuality | PartQuality) -> dict[str, float | None]:
    return {"original": _json_number(measured.loss_original), "converted": _json_number(measured.loss_converted)}


def validate(
    original: Any,
    converted: Any,
    batches: Iterable[Feeds],
    *,
    vocabulary: int | None = None,
    kinds: Mapping[str, OutputKind] = MappingProxyType({}),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Validation:
    """Compare two models on the same inputs; each runs every batch once, and the original a few tokens more.

    Args:
        original, converted: what open_for_batches() gives (or InferenceSessions), with the same inputs and output
            names.
        batches: held-out feeds; the first axis of the token input (else of the first input) counts
            samples. Positions where `attention_mask` is 0 are left out of everything.
        vocabulary: rows of the embedding that the token input indexes, where known; lets logits be
            recognised that no output name tells (see logits_output()).
        kinds: what the graph tells of the outputs, see output_kinds().
        progress: called with (runs done, runs in all).

    Raises:
        DataError: there is no batch, or a batch does not fit the model.
    """
    batches = list(batches)
    samples = sum(map(_sample_count, batches))
    if not samples:
        raise DataError("there is no held-out sample to validate on: give more data, or --no-validate")
    probe = CausalProbe.of(original, batches[0])
    probes = probe.batches if probe is not None else ()
    total = count_runs(original, len(probes) + len(batches)) + count_runs(converted, len(batches))
    runs = itertools.count(1)

    def ran() -> None:
        progress(next(runs), total)

    befores = run_batches(original, [*probes, *batches], ran=ran)
    probed = [next(befores) for _ in probes]
    afters = run_batches(converted, batches, [port.name for port in original.get_outputs()], ran)
    outputs: dict[str, OutputSums] = {}
    others: dict[str, str] = {}
    telling: dict[str, Telling | None] = {}
    tokens: TokenSums | None = None
    logits: LogitsOutput | None = None
    causal = False
    shapes = _Shapes(len(batches))
    for number, (feeds, before, after) in enumerate(zip(batches, befores, afters, strict=True)):
        differ = shapes.differ(before, after)
        if number == 0:
            logits = logits_output(feeds, before, vocabulary)
            causal = logits is not None and probe is not None and probe.is_passed(probed, logits)
            probed.clear()
            telling = _telling(feeds, before, logits, kinds)
        kept = kept_positions(feeds)
        others |= {name: f"{name} ({_kind(array)})" for name, array in before.items() if not _holds_floats(array)}
        for name in (name for name, array in before.items() if _comparable(array) and name not in differ):
            sums = OutputSums.of(before[name], after[name], kept, telling.get(name))
            outputs[name] = outputs[name].merge(sums) if name in outputs else sums
        if logits is not None and logits.name not in differ:
            labels = feeds[logits.tokens] if causal else None
            part = TokenSums.of(before[logits.name], after[logits.name], kept, labels)
            tokens = part if tokens is None else tokens.merge(part)
        before.clear()  # the next batch's outputs come while zip() still has these
        after.clear()
    errors = {name: sums.error() for name, sums in outputs.items()}
    quality = tokens.quality() if tokens is not None else None
    made_logits = logits.name if logits is not None else None
    left_out = tuple(others.values())
    return Validation(samples, errors, quality, made_logits, left_out=left_out, other_shapes=shapes.told())


def _telling(
    feeds: Feeds, outputs: Feeds, logits: LogitsOutput | None, kinds: Mapping[str, OutputKind]
) -> dict[str, Telling | None]:
    """How the outputs tell classes, told from one batch; a language model's logits are no classes."""
    samples = _sample_count(feeds)
    others = {name: array for name, array in outputs.items() if logits is None or name != logits.name}
    return {
        name: tells_classes(name, array, samples, kinds.get(name))
        for name, array in others.items()
        if _comparable(array)
    }


class _Shapes:
    """The outputs whose shape is another one in the converted model, gathered batch by batch."""

    def __init__(self, batches: int) -> None:
        self._batches = batches
        self._found: dict[str, list[str]] = {}

    def differ(self, before: Feeds, after: Feeds) -> set[str]:
        """The names of those of one batch."""
        found = {name for name, array in before.items() if np.shape(array) != np.shape(after[name])}
        for name in (name for name in found if _holds_floats(before[name])):
            told = f"{list(np.shape(after[name]))} for {list(np.shape(before[name]))}"
            self._found.setdefault(name, []).append(told)
        return found

    def told(self) -> tuple[str, ...]:
        """Each with the batches where it is so."""
        return tuple(
            f"{name} (in {len(told)} of {self._batches} batches: {told[0]})" for name, told in self._found.items()
        )


def _comparable(array: Any) -> bool:
    return _holds_floats(array) and bool(array.size)


def _holds_floats(array: Any) -> bool:
    return isinstance(array, np.ndarray) and is_float(array)


def _kind(output: Any) -> str:
    """What ONNX calls the type of an output that ONNX Runtime gave in Python."""
    if isinstance(output, np.ndarray):
        return "string" if output.dtype.kind in "OSU" else str(output.dtype)
    if isinstance(output, list):
        return "a sequence"
    return "a map" if isinstance(output, dict) else type(output).__name__


def _sample_count(feeds: Feeds) -> int:
    name = token_input(feeds) or next((name for name, array in feeds.items() if isinstance(array, np.ndarray)), None)
    return len(feeds[name]) if name is not None and feeds[name].ndim else 1


def _json_value(value: str | float | None) -> str | float | None:
    return value if isinstance(value, str) else _json_number(value)


def _json_number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _told(times: float) -> str:
    """What is learned by heart to the last digit has no number of its own."""
    return f"{times:.1f}" if times < 100 else "over a hundred"

"""How far a converted model is from the original, measured on held-out samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from dynorm_onnx.errors import DataError, ModelError
from dynorm_onnx.runtime.arrays import Feeds, is_float, run
from dynorm_onnx.runtime.logits import LogitsOutput, is_causal, kept_positions, logits_output, token_input
from dynorm_onnx.runtime.measures import OutputError, OutputSums, TokenQuality, TokenSums


@dataclasses.dataclass(frozen=True)
class Validation:
    """The measures of one converted model against its original."""

    samples: int
    outputs: dict[str, OutputError]
    quality: TokenQuality | None  # of the logits, where the model has an output of logits

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that must be shown beside the means."""
        found = [
            f"output {name}: the converted model yields NaN or infinity where the original does not"
            for name, error in self.outputs.items()
            if math.isinf(error.relative_error)
        ]
        if self.quality is not None and self.quality.worst_out_of_proportion:
            worst = self.quality.worst
            found.append(
                f"the worst token (sample {worst.sample}, position {worst.position}) has a KL of "
                f"{worst.kl:.3g} nats where 99 % of the tokens have at most {self.quality.kl_p99:.3g}"
            )
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """The JSON object "validation"; numbers that JSON does not have (NaN, infinity) become null."""
        shown: dict[str, Any] = {
            "samples": self.samples,
            "outputs": {
                name: {key: _json_number(value) for key, value in dataclasses.asdict(error).items()}
                for name, error in self.outputs.items()
            },
        }
        quality = self.quality
        if quality is not None:
            worst = {**dataclasses.asdict(quality.worst), "kl": _json_number(quality.worst.kl)}
            shown["tokens"] = quality.tokens
            shown["kl"] = {
                "mean": _json_number(quality.kl_mean),
                "p99": _json_number(quality.kl_p99),
                "worst": worst,
                "worst_out_of_proportion": quality.worst_out_of_proportion,
            }
            shown["top1_agreement"] = quality.top1_agreement
        if quality is not None and quality.loss_original is not None:
            shown["loss"] = {
                "original": _json_number(quality.loss_original),
                "converted": _json_number(quality.loss_converted),
            }
        return shown


def validate(original: Any, converted: Any, batches: Iterable[Feeds], *, vocabulary: int | None = None) -> Validation:
    """Compare two sessions on the same inputs.

    Args:
        original, converted: onnxruntime.InferenceSessions with the same inputs and output names.
        batches: held-out feeds; the first axis of the token input (else of the first input) counts
            samples. Positions where `attention_mask` is 0 are left out of everything.
        vocabulary: rows of the embedding that the token input indexes, where known; lets logits be
            recognised that no output name tells (see logits_output()).

    Raises:
        DataError: there is no batch, or a batch does not fit the model.
    """
    outputs: dict[str, OutputSums] = {}
    tokens: TokenSums | None = None
    logits: LogitsOutput | None = None
    causal = False
    samples = 0
    for feeds in batches:
        before = run(original, feeds)
        after = run(converted, feeds, list(before))
        _require_shapes(before, after)
        if not samples:
            logits = logits_output(feeds, before, vocabulary)
            causal = logits is not None and is_causal(original, feeds, logits)
        kept = kept_positions(feeds)
        for name in (name for name, array in before.items() if _comparable(array)):
            sums = OutputSums.of(before[name], after[name], kept)
            outputs[name] = outputs[name].merge(sums) if name in outputs else sums
        if logits is not None:
            labels = feeds[logits.tokens] if causal else None
            part = TokenSums.of(before[logits.name], after[logits.name], kept, labels)
            tokens = part if tokens is None else tokens.merge(part)
        samples += _sample_count(feeds)
    if not samples:
        raise DataError("there is no held-out sample to validate on: give more data, or --no-validate")
    errors = {name: sums.error() for name, sums in outputs.items()}
    return Validation(samples, errors, tokens.quality() if tokens is not None else None)


def _require_shapes(before: Feeds, after: Feeds) -> None:
    for name, array in before.items():
        if np.shape(array) != np.shape(after[name]):
            shapes = f"{np.shape(after[name])}, not {np.shape(array)}"
            raise ModelError(f"output {name!r} of the converted model has shape {shapes} as the original's")


def _comparable(array: Any) -> bool:
    return isinstance(array, np.ndarray) and bool(array.size) and is_float(array)


def _sample_count(feeds: Feeds) -> int:
    array = feeds[token_input(feeds) or next(iter(feeds))]
    return len(array) if array.ndim else 1


def _json_number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

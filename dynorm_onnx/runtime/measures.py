"""Measures of how far outputs and predictions are from the original's, summed batch by batch.

What is kept is a few numbers per sample and per token, never logits. The sums of two parts of the data
merge into the sums of both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from dynorm_onnx.runtime.classes import Telling, same_classes

_BLOCK = 2**17  # elements that are held in float64 at a time: 1 MiB, which stays in a core's cache
_OUT_OF_PROPORTION = 10.0  # times the 99th percentile
_ONE_NAT = 1.0
_LEAST_VECTOR = 8
"""Values of the last axis from which an output is a vector, whose direction says something: the cosine of one
probability is 1 whatever it is."""

KL_EDGES = np.logspace(-9, 2, 111)
"""The edges, in nats, of the histogram that TokenQuality keeps: ten bins a decade."""


@dataclasses.dataclass(frozen=True)
class OutputError:
    """How far one output is from the original's."""

    relative_error: float  # ||converted - original|| / ||original|| over all samples
    absolute_error: float  # mean |converted - original| over all values
    cosine: float | None  # mean over samples of the cosine of the sample's values; None where it is no vector
    cosine_min: float | None  # the lowest over samples
    classes: Telling | None = None  # how the output tells a class, where it does
    class_agreement: float | None = None  # share of samples whose class is the same


@dataclasses.dataclass(frozen=True)
class WorstToken:
    """Where the divergence is largest: sample counts over all batches, position along the sequence."""

    sample: int
    position: int
    kl: float


@dataclasses.dataclass(frozen=True)
class PartQuality:
    """What became of the predictions of some of the tokens."""

    tokens: int
    kl_mean: float
    top1_agreement: float
    loss_original: float | None
    loss_converted: float | None


@dataclasses.dataclass(frozen=True)
class TokenQuality:
    """What became of the predictions, over all tokens that are not padding; in nats.

    First tokens are told apart from the others: many models put activations on them that no other token has, so that
    they are wrecked first, and few enough to vanish in a mean.
    """

    tokens: int
    kl_mean: float  # KL(original || converted)
    kl_median: float
    kl_p99: float
    worst: WorstToken
    top1_agreement: float  # share of tokens whose most probable next token is the same
    loss_original: float | None  # mean -log p of the next token; None where the model is not causal
    loss_converted: float | None
    kl_histogram: tuple[int, ...]  # tokens by KL, over KL_EDGES; what lies beyond is in the end bins
    first: PartQuality | None = None  # the first token of every sample; None where no sample has more than one
    others: PartQuality | None = None

    @property
    def worst_out_of_proportion(self) -> bool:
        """Whether a rare token is wrecked although the mean looks well.

        That is: the worst KL is above one nat, so that the prediction is another one, and above ten
        times the 99th percentile. (Of smooth errors, exponentially distributed, the worst of 10^6
        tokens is three times the 99th percentile.)
        """
        return self.worst.kl > max(_ONE_NAT, _OUT_OF_PROPORTION * self.kl_p99)


@dataclasses.dataclass(frozen=True)
class OutputSums:
    """What OutputError is made of; merges by adding and joining."""

    difference: float  # sum of squares of converted - original
    original: float  # sum of squares of the original
    absolute: float  # sum of |converted - original|
    values: int
    cosines: np.ndarray | None  # [samples]; None where the output is no vector
    classes: Telling | None
    same_class: np.ndarray | None  # bool [samples]; None where the output tells no classes

    @classmethod
    def of(
        cls,
        original: np.ndarray,
        converted: np.ndarray,
        kept: np.ndarray | None,
        classes: Telling | None = None,
    ) -> OutputSums:
        """The sums of one batch: arrays [B, ...] of one float type, scalars and vectors as one sample.

        `kept`, bool [B, T], leaves padding out of arrays [B, T, ...]; `classes` is what tells_classes() says.
        Values that are not finite in the original (masks of minus infinity) are left out; those that only the
        conversion made count as an infinite difference.
        """
        same_class = None if classes is None else same_classes(classes, original, converted)
        is_vector = original.ndim > 0 and original.shape[-1] >= _LEAST_VECTOR
        if original.ndim < 2:
            original, converted = original[None], converted[None]
        where = kept if kept is not None and original.shape[:2] == kept.shape else [...] * len(original)
        rows = np.array([_sample_sums(a[i], b[i]) for a, b, i in zip(original, converted, where, strict=True)])
        difference, own, other, dot, absolute, values = rows.T
        norms = np.sqrt(own * other)
        same = (difference == 0) | (norms == 0) & (own == other)
        cosines = np.where(same, 1.0, np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0))
        return cls(
            float(difference.sum()),
            float(own.sum()),
            float(absolute.sum()),
            int(values.sum()),
            np.nan_to_num(cosines) if is_vector else None,
            classes,
            same_class,
        )

    def merge(self, other: OutputSums) -> OutputSums:
        """The sums of both parts of the data."""
        return OutputSums(
            self.difference + other.difference,
            self.original + other.original,
            self.absolute + other.absolute,
            self.values + other.values,
            _joined(self.cosines, other.cosines),
            self.classes,
            _joined(self.same_class, other.same_class),
        )

    def error(self) -> OutputError:
        """The measures; where the original is all zero, the error is absolute."""
        relative = math.sqrt(self.difference / (self.original or 1.0))
        cosines, same = self.cosines, self.same_class
        return OutputError(
            relative_error=relative,
            absolute_error=self.absolute / max(self.values, 1),
            cosine=None if cosines is None else float(cosines.mean()),
            cosine_min=None if cosines is None else float(cosines.min()),
            classes=self.classes,
            class_agreement=None if same is None else float(same.mean()),
        )


@dataclasses.dataclass(frozen=True)
class TokenSums:
    """What TokenQuality is made of: a number or two per token, so that parts merge by joining."""

    kl: np.ndarray  # [tokens]
    agree: np.ndarray  # [tokens] bool
    sample: np.ndarray  # [tokens] counted from the first sample of the part
    position: np.ndarray  # [tokens]
    first: np.ndarray  # [tokens] bool, whether it is the first of a sample of several
    has_next: np.ndarray  # [tokens] bool
    loss_original: np.ndarray  # [tokens with a next token]
    loss_converted: np.ndarray
    samples: int

    @classmethod
    def of(
        cls, original: np.ndarray, converted: np.ndarray, kept: np.ndarray | None, labels: np.ndarray | None
    ) -> TokenSums:
        """The sums of one batch.

        Args:
            original, converted: logits [B, ..., V] of any float type.
            kept: bool [B, T], False at padding; used where logits are [B, T, V].
            labels: token ids [B, T] whose next tokens are predicted; None where they are not.
        """
        shape = original.shape[:-1]
        sample, position = np.divmod(np.arange(math.prod(shape)), math.prod(shape[1:]))
        used = np.ones(shape, bool) if kept is None or kept.shape != shape else kept
        following, has_next = _next_tokens(shape, used, labels)
        rows = np.flatnonzero(used)
        parts = [
            _compare(before, after, following[chosen], has_next[chosen])
            for chosen, before, after in _blocks(original, converted, rows)
        ]
        kl, agree, loss_before, loss_after = (
            np.concatenate([part[i] for part in parts]) if parts else np.empty(0) for i in range(4)
        )
        first = _first_tokens(used)[rows]
        return cls(
            kl, agree, sample[rows], position[rows], first, has_next[rows], loss_before, loss_after, shape[0]
        )  # fmt: skip

    def merge(self, other: TokenSums) -> TokenSums:
        """The sums of both parts, the other's samples counted on from this one's."""
        joined = {
            field.name: np.concatenate([getattr(self, field.name), getattr(other, field.name)])
            for field in dataclasses.fields(self)
            if field.name not in ("sample", "samples")
        }
        sample = np.concatenate([self.sample, other.sample + self.samples])
        return TokenSums(sample=sample, samples=self.samples + other.samples, **joined)

    def quality(self) -> TokenQuality | None:
        """The measures; None where every token was padding."""
        if not self.kl.size:
            return None
        worst = int(np.argmax(self.kl))
        whole = self._part(np.ones(self.kl.size, bool))
        return TokenQuality(
            tokens=whole.tokens,
            kl_mean=whole.kl_mean,
            kl_median=float(np.quantile(self.kl, 0.5, method="higher")),
            kl_p99=float(np.quantile(self.kl, 0.99, method="higher")),
            worst=WorstToken(int(self.sample[worst]), int(self.position[worst]), float(self.kl[worst])),
            top1_agreement=whole.top1_agreement,
            loss_original=whole.loss_original,
            loss_converted=whole.loss_converted,
            kl_histogram=_kl_histogram(self.kl),
            first=self._part(self.first) if self.first.any() else None,
            others=self._part(~self.first) if self.first.any() else None,
        )

    def _part(self, chosen: np.ndarray) -> PartQuality:
        """The measures of the tokens chosen, bool [tokens], at least one."""
        predicts = chosen[self.has_next]
        losses = (self.loss_original, self.loss_converted)
        before, after = (float(loss[predicts].mean()) if predicts.any() else None for loss in losses)
        kl, agree = float(self.kl[chosen].mean()), float(self.agree[chosen].mean())
        return PartQuality(int(chosen.sum()), kl, agree, before, after)


def _joined(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    return None if one is None or other is None else np.concatenate([one, other])


def _first_tokens(used: np.ndarray) -> np.ndarray:
    """For every position of bool [B, T], flattened: whether it is the first used one of a row that uses several.

    Where tokens have no such axis, [B] or [B, N, M], none is.
    """
    if used.ndim != 2:
        return np.zeros(used.size, bool)
    several = used.sum(1, keepdims=True) > 1
    return (used & several & (used.cumsum(1) == 1)).reshape(-1)


def _kl_histogram(kl: np.ndarray) -> tuple[int, ...]:
    counts, _ = np.histogram(np.clip(kl, KL_EDGES[0], KL_EDGES[-1]), KL_EDGES)
    return tuple(counts.tolist())


def _shifted(logits: np.ndarray) -> np.ndarray:
    """float64 with the largest of each row at 0; a row with a NaN or plus infinity in it becomes NaN."""
    wide = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        return wide - wide.max(axis=-1, keepdims=True)


def _compare(
    original: np.ndarray, converted: np.ndarray, following: np.ndarray, has_next: np.ndarray
) -> tuple[np.ndarray, ...]:
    """KL, agreement [N], and the losses of both where a next token is known, for logits [N, V]."""
    p, q = _shifted(original), _shifted(converted)
    weights, total = np.exp(p), np.exp(q).sum(axis=-1)
    own = weights.sum(axis=-1)
    broken = np.isnan(total)
    agree = (p.argmax(axis=-1) == q.argmax(axis=-1)) & ~broken
    rows, labels = np.flatnonzero(has_next), following[has_next]
    losses = (np.log(own)[rows] - p[rows, labels], np.log(total)[rows] - q[rows, labels])
    with np.errstate(invalid="ignore"):
        difference = np.subtract(p, q, out=q)
        # A token of no probability adds nothing, even where the converted model's log is minus infinity too.
        np.copyto(difference, 0.0, where=weights == 0)
        kl = np.einsum("nv,nv->n", weights, difference) / own - np.log(own) + np.log(total)
    return np.where(broken, np.inf, np.maximum(kl, 0.0)), agree, *losses


def _blocks(original: np.ndarray, converted: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """(row numbers, original rows, converted rows), so few at a time that float64 copies stay small."""
    vocabulary = original.shape[-1]
    a, b = original.reshape(-1, vocabulary), converted.reshape(-1, vocabulary)
    step = max(1, _BLOCK // vocabulary)
    for start in range(0, len(rows), step):
        chosen = rows[start : start + step]
        yield chosen, a[chosen], b[chosen]


def _next_tokens(shape: tuple[int, ...], used: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """For every position of [B, T], flattened: the token after it, and whether there is one."""
    following, has_next = np.zeros(shape, np.int64), np.zeros(shape, bool)
    if labels is not None:
        following[:, :-1] = labels[:, 1:]
        has_next[:, :-1] = used[:, :-1] & used[:, 1:]
    return following.reshape(-1), has_next.reshape(-1)


def _sample_sums(original: np.ndarray, converted: np.ndarray) -> tuple[float, ...]:
    """Sums of (b - a)^2, a^2, b^2, a b, |b - a| and 1 over the values of one sample, block by block in float64."""
    sums = np.zeros(6)
    flat_a, flat_b = original.reshape(-1), converted.reshape(-1)
    for start in range(0, flat_a.size, _BLOCK):
        a = flat_a[start : start + _BLOCK].astype(np.float64)
        b = flat_b[start : start + _BLOCK].astype(np.float64)
        usable = np.isfinite(a)
        a, b = a[usable], b[usable]
        with np.errstate(invalid="ignore", over="ignore"):
            step = b - a
            sums += np.array([step @ step, a @ a, b @ b, a @ b, np.abs(step).sum(), a.size])
    difference, own, other, dot, absolute, values = sums.tolist()
    if not math.isfinite(difference):
        return math.inf, own, own, 0.0, math.inf, values
    return difference, own, other, dot, absolute, values

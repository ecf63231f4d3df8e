"""Measures of how far outputs and predictions are from the original's, summed batch by batch.

What is kept is a few numbers per sample and per token, never logits. The sums of two parts of the data
merge into the sums of both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from dynorm_onnx.runtime.logits import vocabulary_loss

_BLOCK = 2**21  # elements that are held in float64 at a time: 16 MiB
_OUT_OF_PROPORTION = 10.0  # times the 99th percentile
_ONE_NAT = 1.0

KL_EDGES = np.logspace(-9, 2, 111)
"""The edges, in nats, of the histogram that TokenQuality keeps: ten bins a decade."""


@dataclasses.dataclass(frozen=True)
class OutputError:
    """How far one output is from the original's."""

    relative_error: float  # ||converted - original|| / ||original|| over all samples
    cosine: float  # mean over samples of the cosine of the sample's values
    cosine_min: float  # the lowest over samples


@dataclasses.dataclass(frozen=True)
class WorstToken:
    """Where the divergence is largest: sample counts over all batches, position along the sequence."""

    sample: int
    position: int
    kl: float


@dataclasses.dataclass(frozen=True)
class TokenQuality:
    """What became of the predictions, over all tokens that are not padding; in nats."""

    tokens: int
    kl_mean: float  # KL(original || converted)
    kl_p99: float
    worst: WorstToken
    top1_agreement: float  # share of tokens whose most probable next token is the same
    loss_original: float | None  # mean -log p of the next token; None where the model is not causal
    loss_converted: float | None
    kl_histogram: tuple[int, ...]  # tokens by KL, over KL_EDGES; what lies beyond is in the end bins

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
    cosines: np.ndarray  # [samples]

    @classmethod
    def of(cls, original: np.ndarray, converted: np.ndarray, kept: np.ndarray | None) -> OutputSums:
        """The sums of one batch: arrays [B, ...] of one float type, scalars and vectors as one sample.

        `kept`, bool [B, T], leaves padding out of arrays [B, T, ...]. Values that are not finite in the
        original (masks of minus infinity) are left out; those that only the conversion made count as an
        infinite difference.
        """
        if original.ndim < 2:
            original, converted = original[None], converted[None]
        where = kept if kept is not None and original.shape[:2] == kept.shape else [...] * len(original)
        rows = np.array([_sample_sums(a[i], b[i]) for a, b, i in zip(original, converted, where, strict=True)])
        difference, own, other, dot = rows.T
        norms = np.sqrt(own * other)
        same = (difference == 0) | (norms == 0) & (own == other)
        cosines = np.where(same, 1.0, np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0))
        return cls(float(difference.sum()), float(own.sum()), np.nan_to_num(cosines))

    def merge(self, other: OutputSums) -> OutputSums:
        """The sums of both parts of the data."""
        return OutputSums(
            self.difference + other.difference,
            self.original + other.original,
            np.concatenate([self.cosines, other.cosines]),
        )

    def error(self) -> OutputError:
        """The measures; where the original is all zero, the error is absolute."""
        relative = math.sqrt(self.difference / (self.original or 1.0))
        return OutputError(relative, float(self.cosines.mean()), float(self.cosines.min()))


@dataclasses.dataclass(frozen=True)
class TokenSums:
    """What TokenQuality is made of: a number or two per token, so that parts merge by joining."""

    kl: np.ndarray  # [tokens]
    agree: np.ndarray  # [tokens] bool
    sample: np.ndarray  # [tokens] counted from the first sample of the part
    position: np.ndarray  # [tokens]
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
        return cls(kl, agree, sample[rows], position[rows], loss_before, loss_after, shape[0])

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
        losses = bool(self.loss_original.size)
        return TokenQuality(
            tokens=self.kl.size,
            kl_mean=float(self.kl.mean()),
            kl_p99=float(np.quantile(self.kl, 0.99, method="higher")),
            worst=WorstToken(int(self.sample[worst]), int(self.position[worst]), float(self.kl[worst])),
            top1_agreement=float(self.agree.mean()),
            loss_original=float(self.loss_original.mean()) if losses else None,
            loss_converted=float(self.loss_converted.mean()) if losses else None,
            kl_histogram=_kl_histogram(self.kl),
        )


def _kl_histogram(kl: np.ndarray) -> tuple[int, ...]:
    counts, _ = np.histogram(np.clip(kl, KL_EDGES[0], KL_EDGES[-1]), KL_EDGES)
    return tuple(counts.tolist())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log softmax over the last axis, in float64 and without overflow."""
    wide = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):  # a row with a NaN or infinity in it becomes NaN
        shifted = wide - wide.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _compare(
    original: np.ndarray, converted: np.ndarray, following: np.ndarray, has_next: np.ndarray
) -> tuple[np.ndarray, ...]:
    """KL, agreement [N], and the losses of both where a next token is known, for logits [N, V]."""
    p, q = log_softmax(original), log_softmax(converted)
    weights = np.exp(p)
    terms = np.zeros_like(p)
    # A token of no probability adds nothing, even where the converted model's log is minus infinity too.
    np.multiply(weights, np.subtract(p, q, where=weights > 0, out=terms), where=weights > 0, out=terms)
    broken = np.isnan(q).any(axis=-1)
    kl = np.where(broken, np.inf, np.maximum(terms.sum(axis=-1), 0.0))
    agree = (p.argmax(axis=-1) == q.argmax(axis=-1)) & ~broken
    labels = following[has_next]
    return kl, agree, vocabulary_loss(p[has_next], labels), vocabulary_loss(q[has_next], labels)


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


def _sample_sums(original: np.ndarray, converted: np.ndarray) -> tuple[float, float, float, float]:
    """Sums of (b - a)^2, a^2, b^2 and a b over the values of one sample, block by block in float64."""
    sums = np.zeros(4)
    flat_a, flat_b = original.reshape(-1), converted.reshape(-1)
    for start in range(0, flat_a.size, _BLOCK):
        a = flat_a[start : start + _BLOCK].astype(np.float64)
        b = flat_b[start : start + _BLOCK].astype(np.float64)
        usable = np.isfinite(a)
        a, b = a[usable], b[usable]
        with np.errstate(invalid="ignore", over="ignore"):
            step = b - a
            sums += step @ step, a @ a, b @ b, a @ b
    difference, own, other, dot = sums.tolist()
    return (difference, own, other, dot) if math.isfinite(difference) else (math.inf, own, own, 0.0)

"""How far a language model's words are from the original's: KL(original || converted) and its gradient by the logits.

A search asks for both hundreds of times, so what the original says is kept as probabilities, with the part of the KL
that never changes, and the logits' own memory becomes the gradient. Whoever asks does so for part after part of the
tokens, as many as the processor's cache holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

PART_LIMIT = 4 << 20
"""Bytes of an array of a number for every token and word, up to which a part of the tokens may take them."""
LEAST_TOKENS = 256
"""Of a part: with fewer, products with the weights of a large vocabulary wait for the memory."""


@dataclasses.dataclass(frozen=True)
class Distributions:
    """The original's words after each token: probabilities [T, V], and [T] sum_v p log p, nats, float64."""

    p: np.ndarray
    negentropy: np.ndarray

    @classmethod
    def of_logits(cls, logits: np.ndarray) -> Distributions:
        """The softmax of logits [T, V], in their type."""
        log_p = log_softmax(logits)
        p = np.exp(log_p)
        return cls(p, _sums_of_products(p, log_p))

    @classmethod
    def joined(cls, parts: Sequence[Distributions]) -> Distributions:
        """All tokens of the parts, in order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("p", "negentropy")))

    def __len__(self) -> int:
        return len(self.p)

    def __getitem__(self, rows: slice | np.ndarray) -> Distributions:
        return Distributions(self.p[rows], self.negentropy[rows])

    def parts(self) -> Iterator[slice]:
        """Rows that belong together, of all tokens in order."""
        count = max(LEAST_TOKENS, PART_LIMIT // (self.p.itemsize * self.p.shape[1]))
        return (slice(start, start + count) for start in range(0, len(self), count))

    def kl(self, logits: np.ndarray) -> float:
        """KL(p || softmax(logits)), nats, summed over the tokens. Writes over the logits [T, V]."""
        return self._kl_and_exponentials(logits)[0]

    def kl_and_gradient(self, logits: np.ndarray) -> tuple[float, np.ndarray]:
        """The same and its gradient by the logits, softmax(logits) - p [T, V], in their memory."""
        value, sums = self._kl_and_exponentials(logits)
        logits /= sums
        logits -= self.p
        return value, logits

    def _kl_and_exponentials(self, logits: np.ndarray) -> tuple[float, np.ndarray]:
        """The sum of the KL, and the rows' sums [T, 1] of what the logits become: their exponentials, 1 at most."""
        logits -= logits.max(-1, keepdims=True)
        expected = _sums_of_products(self.p, logits)
        np.exp(logits, out=logits)
        sums = logits.sum(-1, keepdims=True)
        return float(np.sum(self.negentropy - expected + np.log(sums[:, 0].astype(np.float64)))), sums


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in the type of the logits."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _sums_of_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of rows, float64."""
    return np.einsum("tv,tv->t", a, b).astype(np.float64)

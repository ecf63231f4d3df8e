"""Ridge regression towards given weights, from streamed sums; its strength chosen on held-out tokens.

A layer y = F W should, on the converted model's inputs F, give the original's outputs. With R the
part of the target that F W misses, the correction is (F^T F + lambda m I)^-1 F^T R, m the mean of
the diagonal: GPTQ's idea (Frantar et al., arXiv 2210.17323) with norms in the place of quantisation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""The lambdas tried, in units of the mean of the diagonal of F^T F."""

SKETCH = 256
"""Mixtures of outputs that stand for all of them when lambda is chosen: solving for many outputs is what takes time."""


class Equations(Protocol):
    """The data of a regression of targets R [T, N] on features F [T, K]."""

    @property
    def tokens(self) -> float:
        """The sum of the weights of the T tokens."""

    @property
    def inputs(self) -> int:
        """K."""

    @property
    def outputs(self) -> int:
        """N."""

    def merge(self, other: Self) -> Self:
        """Those of the joined tokens."""

    def with_target(self, others: Sequence[Self]) -> Self:
        """These features with the targets of others, of the same features, side by side."""

    def columns(self, place: slice) -> Self:
        """With the targets of some outputs only."""

    def mixed(self, mixture: np.ndarray) -> Self:
        """With the targets R mixture, [N, M]."""

    def solve(self, strength: float) -> np.ndarray:
        """The correction [K, N] for one lambda."""

    def products(self) -> np.ndarray:
        """F^T F, [K, K] float64."""

    def error_change(self, correction: np.ndarray) -> float:
        """By how much the correction changes the squared error on this data; negative is better."""


@dataclasses.dataclass(frozen=True)
class NormalSums:
    """Equations by sums over tokens: F^T F [K, K] and F^T R [K, N], float64, and the sum of their weights."""

    gram: np.ndarray
    cross: np.ndarray
    tokens: float

    @property
    def inputs(self) -> int:
        """K."""
        return len(self.gram)

    @property
    def outputs(self) -> int:
        """N."""
        return self.cross.shape[1]

    def merge(self, other: NormalSums) -> NormalSums:
        """See Equations."""
        return NormalSums(self.gram + other.gram, self.cross + other.cross, self.tokens + other.tokens)

    def with_target(self, others: Sequence[NormalSums]) -> NormalSums:
        """See Equations."""
        return dataclasses.replace(self, cross=np.hstack([other.cross for other in others]))

    def columns(self, place: slice) -> NormalSums:
        """See Equations."""
        return dataclasses.replace(self, cross=self.cross[:, place])

    def mixed(self, mixture: np.ndarray) -> NormalSums:
        """See Equations."""
        return dataclasses.replace(self, cross=self.cross @ mixture)

    def solve(self, strength: float) -> np.ndarray:
        """See Equations."""
        return _solve_shifted(self.gram, strength * np.trace(self.gram) / len(self.gram), self.cross)

    def products(self) -> np.ndarray:
        """See Equations."""
        return self.gram

    def error_change(self, correction: np.ndarray) -> float:
        """See Equations."""
        return float(np.sum(correction * (self.gram @ correction)) - 2 * np.sum(correction * self.cross))


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """Equations by the tokens themselves, float32. The same solution from a system of T instead of K unknowns:
    F^T (F F^T + lambda m I)^-1 R."""

    features: np.ndarray  # F
    target: np.ndarray  # R
    tokens: float

    @property
    def inputs(self) -> int:
        """K."""
        return self.features.shape[1]

    @property
    def outputs(self) -> int:
        """N."""
        return self.target.shape[1]

    def merge(self, other: TokenRows) -> TokenRows:
        """See Equations."""
        features, target = np.vstack([self.features, other.features]), np.vstack([self.target, other.target])
        return TokenRows(features, target, self.tokens + other.tokens)

    def with_target(self, others: Sequence[TokenRows]) -> TokenRows:
        """See Equations."""
        return dataclasses.replace(self, target=np.hstack([other.target for other in others]))

    def columns(self, place: slice) -> TokenRows:
        """See Equations."""
        return dataclasses.replace(self, target=self.target[:, place])

    def mixed(self, mixture: np.ndarray) -> TokenRows:
        """See Equations."""
        return dataclasses.replace(self, target=self.target @ mixture.astype(np.float32))

    def solve(self, strength: float) -> np.ndarray:
        """See Equations."""
        products = (self.features @ self.features.T).astype(np.float64)
        shift = strength * np.trace(products) / self.features.shape[1]
        return self.features.T @ _solve_shifted(products, shift, self.target).astype(np.float32)

    def products(self) -> np.ndarray:
        """See Equations."""
        return (self.features.T @ self.features).astype(np.float64)

    def error_change(self, correction: np.ndarray) -> float:
        """See Equations."""
        added = self.features @ correction.astype(np.float32)
        return float(np.sum(added * (added - 2 * self.target), dtype=np.float64))


def _solve_shifted(matrix: np.ndarray, shift: float, right: np.ndarray) -> np.ndarray:
    """(matrix + shift I)^-1 right."""
    # Features that are always zero leave the matrix singular where lambda is tiny.
    floor = np.finfo(np.float64).eps * np.trace(matrix)
    shifted = matrix.copy()
    shifted[np.diag_indices(len(matrix))] += max(shift, floor, 1e-300)
    return np.linalg.solve(shifted, right)


Data = TypeVar("Data", bound=Equations)


def sketch(equations: Data) -> Data:
    """SKETCH random mixtures of the outputs, if there are more: squared errors on them are, in the mean over the
    draw, those on all outputs."""
    if equations.outputs <= SKETCH:
        return equations
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (equations.outputs, SKETCH))
    return equations.mixed(signs / np.sqrt(SKETCH))


@dataclasses.dataclass(frozen=True)
class Ridge:
    """A solved layer: the correction to its weights, and how it was regularised.

    `strength` is None where every lambda made held-out tokens worse; the correction is then zero.
    """

    correction: np.ndarray  # [K, N]
    strength: float | None

    @classmethod
    def side_by_side(cls, parts: Sequence[Ridge]) -> Ridge:
        """One layer of several, and the largest strength of theirs."""
        strengths = [part.strength for part in parts if part.strength is not None]
        return cls(np.hstack([part.correction for part in parts]), max(strengths, default=None))


def solve_ridges(training: Sequence[Data], held_out: Sequence[Data], *, cautious: bool = False) -> list[Ridge]:
    """Solve layers that read the same features; one factorisation serves them all.

    Each layer's lambda is chosen on held-out tokens, downhill from the middle of STRENGTHS, by what it gains there.
    `cautious`: less what it gains on the tokens it was solved with beyond that, and so has learned by heart; sixty
    layers, each with a little of it, add up to a model that has learned those tokens. No layer is solved with tokens
    that choose, or the layers behind it would choose theirs on tokens that its outputs were fitted to.
    """
    seen, unseen = [sketch(part) for part in training], [sketch(part) for part in held_out]
    together = _Together(seen)

    def change(layer: int, strength: float) -> float:
        correction = together.solve(strength)[layer]
        others = _change(unseen[layer], correction)
        own = _change(seen[layer], correction) if cautious else others
        return others + max(others - own, 0.0)

    changes = [functools.cache(functools.partial(change, layer)) for layer in range(len(training))]
    return _solved(training, [_downhill(of_layer) for of_layer in changes])


def _change(equations: Equations, correction: np.ndarray) -> float:
    """By how much the correction changes the squared error, a token."""
    return equations.error_change(correction) / max(equations.tokens, 1e-300)


def _downhill(change: Callable[[float], float]) -> float | None:
    """The strength with the least change of the error, by steps from the middle; None where it is no gain."""
    place = len(STRENGTHS) // 2
    while True:
        around = range(max(place - 1, 0), min(place + 2, len(STRENGTHS)))
        best = min(around, key=lambda index: change(STRENGTHS[index]))
        if best == place:
            return STRENGTHS[place] if change(STRENGTHS[place]) < 0 else None
        place = best


def _solved(layers: Sequence[Data], strengths: Sequence[float | None]) -> list[Ridge]:
    """The corrections of all layers, those of one strength solved together."""
    ridges = [Ridge(np.zeros((layer.inputs, layer.outputs)), None) for layer in layers]
    for strength in {strength for strength in strengths if strength is not None}:
        members = [index for index, own in enumerate(strengths) if own == strength]
        corrections = _Together([layers[index] for index in members]).solve(strength)
        for index, correction in zip(members, corrections, strict=True):
            ridges[index] = Ridge(correction, strength)
    return ridges


class _Together(Generic[Data]):
    """Layers of the same features, solved by one factorisation for each strength."""

    def __init__(self, layers: Sequence[Data]) -> None:
        self._sums = layers[0].with_target(layers)
        self._ends = np.cumsum([layer.outputs for layer in layers])[:-1]
        self._known: dict[float, list[np.ndarray]] = {}

    def solve(self, strength: float) -> list[np.ndarray]:
        """The corrections, layer by layer."""
        if strength not in self._known:
            self._known[strength] = np.split(self._sums.solve(strength), self._ends, axis=1)
        return self._known[strength]

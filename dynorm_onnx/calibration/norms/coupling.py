"""Choose the channels that stay in the sum of a norm, and how strongly: by what they tell of a token's length.

A norm divides by the root of S = sum_j x_j^2 (of the centred x, for LayerNorm). The function that replaces it knows of
S what the coupled channels M tell: a + sum_{j in M} kappa_j x_j^2, with a >= 0 and kappa_j >= 0 of least *relative*
error, since an output misses S by its relative error, whatever the token's length. The gain then has c_j = kappa_j / a
(functions/coupling.py). Channels are taken greedily (orthogonal matching pursuit on the squares), so many as held-out
tokens gain by.

Partial RMSNorm (Zhang and Sennrich, arXiv 1910.07467, section 4) estimates S from a fixed share of the channels; here
they are chosen, weighted, and as few as will do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dynorm_onnx.calibration.norms.rows import Rows
from dynorm_onnx.functions import Coupling

CANDIDATES = 512
"""Channels that are considered: those whose squares, relative to S, vary most. It bounds the sums at 512^2."""

LEFT_OVER = 0.02
"""Of the channels allowed, so few are coupled that the held-out squared error of S is this share above its least: the
last ones are not worth their multiplications."""

SMALL_ENOUGH = 2e-3
"""A relative error of S, twice that of the length, at which no further channel is looked for."""

SMALLEST_CONSTANT = 1e-6  # of the usual S: a constant of 0 would leave nothing to divide by where M is silent


MASSIVE = 5.0
"""A token is massive where it is so many times as long as the median token at the same norm."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A coupling, None where no channel is worth it, and what each of its channels brought.

    `length_errors` [k + 1] are the relative errors of held-out tokens' S as the constant alone gives it, then with the
    first channel, the first two, ... `ordinary_error` is that of tokens that are not massive, with all k.
    """

    coupling: Coupling | None
    length_errors: tuple[float, ...]
    ordinary_error: float


UNCOUPLED = Chosen(None, (), 0.0)
"""Where no channel may be coupled, or no token has any length."""


@dataclasses.dataclass(frozen=True)
class SquareSums:
    """Sums over tokens, each divided by its S: of the products of (1, x_j^2 for each candidate j), [n + 1, n + 1]; of
    themselves, [n + 1]; and the sum of the tokens' weights."""

    gram: np.ndarray
    cross: np.ndarray
    tokens: float

    def merge(self, other: SquareSums) -> SquareSums:
        """Those of the joined tokens."""
        return SquareSums(self.gram + other.gram, self.cross + other.cross, self.tokens + other.tokens)

    @classmethod
    def nothing(cls, candidates: int) -> SquareSums:
        """Of no token."""
        return cls(np.zeros((candidates + 1, candidates + 1)), np.zeros(candidates + 1), 0.0)

    @classmethod
    def of(cls, squares: np.ndarray, lengths: np.ndarray, weights: np.ndarray) -> SquareSums:
        """`squares` [T, n] of the candidates, `lengths` S [T], `weights` [T]; a token of weight 0 counts nothing."""
        counts = weights > 0
        squares, lengths, weights = squares[counts], lengths[counts], weights[counts]
        relative = np.hstack([np.ones((len(squares), 1)), squares]) / lengths[:, None]
        weighted = relative * weights[:, None]
        return cls(relative.T @ weighted, weighted.sum(0), float(weights.sum()))

    def relative_error(self, places: list[int], kappas: np.ndarray) -> float:
        """Of S as a + sum kappa_j x_j^2 gives it; `places` begin with 0, the constant's."""
        squared = self.tokens - 2 * self.cross[places] @ kappas + kappas @ self.gram[np.ix_(places, places)] @ kappas
        return float(np.sqrt(max(squared, 0.0) / max(self.tokens, 1e-300)))


def choose_coupling(kind: str, epsilon: float, batches: Callable[[], Iterator[Rows]], most: int) -> Chosen:
    """The coupling of a norm of `kind` ("rms" or "layer"), of at most `most` channels.

    `batches` gives the tokens, and is read twice. Massive tokens are a class of their own: however few they are (they
    may be one in a thousand), the channel that makes them so is the first. The others are chosen by all tokens.
    """
    seen = _look(kind, epsilon, batches())
    if seen is None:
        return UNCOUPLED
    nothing = SquareSums.nothing(len(seen.candidates))
    training, held_out, ordinary = nothing, nothing, nothing
    of_massive = np.zeros(len(seen.candidates))
    for rows in batches():
        lengths = squared_lengths(kind, epsilon, rows.x)
        squares = np.square(np.asarray(rows.x[:, seen.candidates], np.float64))
        weights = np.where(lengths > 0, rows.weights, 0.0)
        massive = lengths > seen.massive_from
        training = training.merge(SquareSums.of(squares, lengths, np.where(rows.held_out, 0.0, weights)))
        held_out = held_out.merge(SquareSums.of(squares, lengths, np.where(rows.held_out, weights, 0.0)))
        ordinary = ordinary.merge(SquareSums.of(squares, lengths, np.where(rows.held_out & ~massive, weights, 0.0)))
        own = massive & ~rows.held_out
        of_massive += (squares[own] / lengths[own, None]).sum(axis=0)
    first = int(of_massive.argmax()) + 1 if of_massive.any() else None
    return _greedy(training, held_out if held_out.tokens else training, ordinary, seen, first, most)


def squared_lengths(kind: str, epsilon: float, x: np.ndarray) -> np.ndarray:
    """S of each row of x [T, C], float64: what the norm divides by, squared, times C."""
    wide = np.asarray(x, np.float64)
    if kind == "layer":
        wide = wide - wide.mean(axis=1, keepdims=True)
    return np.square(wide).sum(axis=1) + epsilon * x.shape[1]


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What a first look at the tokens tells."""

    candidates: np.ndarray  # the channels whose share of S varies most, in order
    usual: float  # the median S

    @property
    def massive_from(self) -> float:
        """The S from which on a token is massive."""
        return MASSIVE**2 * self.usual


def _look(kind: str, epsilon: float, batches: Iterable[Rows]) -> _Seen | None:
    """None where there is no token of any length, or lengths are no numbers: epsilon or the square overflows."""
    total, lengths = np.zeros(1), [np.zeros(0)]
    for rows in batches:
        part = ~rows.held_out
        own = squared_lengths(kind, epsilon, rows.x[part])
        shares = np.square(np.asarray(rows.x[part], np.float64)) / np.where(own > 0, own, np.inf)[:, None]
        total = total + rows.weights[part].astype(np.float64) @ np.square(shares)
        lengths.append(own)
    if not total.any() or not np.all(np.isfinite(total)):
        return None
    candidates = np.sort(np.argsort(-total, kind="stable")[: min(CANDIDATES, len(total))])
    return _Seen(candidates, float(np.median(np.concatenate(lengths))))


def _greedy(
    training: SquareSums, judged: SquareSums, ordinary: SquareSums, seen: _Seen, first: int | None, most: int
) -> Chosen:
    """`first` is the place of the channel that massive tokens are massive in, None where there are none."""
    path = [_not_negative(training, [0])]
    errors = [judged.relative_error(*path[0])]
    while len(path) <= min(most, len(seen.candidates)) and errors[-1] > SMALL_ENOUGH:
        best = first if len(path) == 1 and first is not None else _most_promising(training, *path[-1])
        if best is None:
            break
        more = _not_negative(training, [*path[-1][0], best])
        if len(more[0]) <= len(path[-1][0]):
            break
        path.append(more)
        errors.append(judged.relative_error(*more))
    least = int(first is not None and len(path) > 1)
    allowed = (1 + LEFT_OVER) * min(errors[least:]) ** 2
    enough = next(size for size, error in enumerate(errors) if size >= least and error**2 <= allowed)
    places, kappas = path[enough]
    left = ordinary.relative_error(places, kappas)
    if enough == 0:
        return Chosen(None, tuple(errors[:1]), left)
    strengths = kappas[1:] / max(float(kappas[0]), SMALLEST_CONSTANT * seen.usual)
    coupling = Coupling(seen.candidates[np.array(places[1:]) - 1], strengths)
    return Chosen(coupling, tuple(errors[: enough + 1]), left)


def _most_promising(sums: SquareSums, places: list[int], kappas: np.ndarray) -> int | None:
    """The place whose square, added alone with a positive kappa, takes most off the error."""
    residual = sums.cross - sums.gram[:, places] @ kappas
    inside = sums.gram[np.ix_(places, places)]
    explained = np.einsum("ij,ij->j", sums.gram[places], np.linalg.lstsq(inside, sums.gram[places], rcond=None)[0])
    diagonal = np.diag(sums.gram)
    left = np.maximum(diagonal - explained, 1e-12 * diagonal + 1e-300)
    gains = np.where(residual > 0, residual**2 / left, 0.0)
    gains[places] = 0.0
    best = int(gains.argmax())
    return best if gains[best] > 0 else None


def _not_negative(sums: SquareSums, places: list[int]) -> tuple[list[int], np.ndarray]:
    """Least squares over these places, without those that would come out negative; the constant stays."""
    places = list(places)
    while True:
        scale = np.sqrt(np.diag(sums.gram)[places])
        scaled = sums.gram[np.ix_(places, places)] / np.outer(scale, scale)
        kappas = np.linalg.lstsq(scaled, sums.cross[places] / scale, rcond=1e-10)[0] / scale
        bad = [index for index in range(1, len(places)) if kappas[index] <= 0]
        if not bad:
            return places, kappas
        places.pop(min(bad, key=lambda index: kappas[index] * scale[index]))

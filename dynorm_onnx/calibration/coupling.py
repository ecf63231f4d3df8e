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

from dynorm_onnx.calibration.rows import Rows
from dynorm_onnx.functions import Coupling

CANDIDATES = 512
"""Channels that are considered: those whose squares, relative to S, vary most. It bounds the sums at 512^2."""

LEFT_OVER = 0.02
"""Of the channels allowed, so few are coupled that the held-out squared error of S is this share above its least: the
last ones are not worth their multiplications."""

SMALL_ENOUGH = 2e-3
"""A relative error of S, twice that of the length, at which no further channel is looked for."""

SMALLEST_CONSTANT = 1e-6  # of the usual S: a constant of 0 would leave nothing to divide by where M is silent


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A coupling and what each of its channels brought.

    `length_errors` [k + 1] are the relative errors of a held-out token's S as the constant alone gives it, then with
    the first channel, the first two, ...
    """

    coupling: Coupling
    length_errors: tuple[float, ...]


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
    def of(cls, squares: np.ndarray, lengths: np.ndarray, weights: np.ndarray) -> SquareSums:
        """`squares` [T, n] of the candidates, `lengths` S [T] > 0, `weights` [T]."""
        relative = np.hstack([np.ones((len(squares), 1)), squares]) / lengths[:, None]
        weighted = relative * weights[:, None]
        return cls(relative.T @ weighted, weighted.sum(0), float(weights.sum()))

    def relative_error(self, places: list[int], kappas: np.ndarray) -> float:
        """Of S as a + sum kappa_j x_j^2 gives it; `places` begin with 0, the constant's."""
        squared = self.tokens - 2 * self.cross[places] @ kappas + kappas @ self.gram[np.ix_(places, places)] @ kappas
        return float(np.sqrt(max(squared, 0.0) / max(self.tokens, 1e-300)))


def choose_coupling(kind: str, epsilon: float, batches: Callable[[], Iterator[Rows]], most: int) -> Chosen | None:
    """The coupling of a norm of `kind` ("rms" or "layer"), of at most `most` channels; None where none is worth it.

    `batches` gives the tokens, and is read twice.
    """
    candidates = _candidates(kind, epsilon, batches())
    if candidates is None or most < 1:
        return None
    sums: dict[bool, SquareSums] = {}
    typical: list[np.ndarray] = []
    for rows in batches():
        lengths = squared_lengths(kind, epsilon, rows.x)
        squares = np.square(np.asarray(rows.x[:, candidates], np.float64))
        for held_out, part in ((False, ~rows.held_out), (True, rows.held_out)):
            part = part & (lengths > 0)
            own = SquareSums.of(squares[part], lengths[part], rows.weights[part].astype(np.float64))
            sums[held_out] = sums[held_out].merge(own) if held_out in sums else own
        typical.append(lengths[lengths > 0])
    floor = SMALLEST_CONSTANT * float(np.median(np.concatenate(typical)))
    return _greedy(sums[False], sums[True], candidates, most, floor)


def squared_lengths(kind: str, epsilon: float, x: np.ndarray) -> np.ndarray:
    """S of each row of x [T, C], float64: what the norm divides by, squared, times C."""
    wide = np.asarray(x, np.float64)
    if kind == "layer":
        wide = wide - wide.mean(axis=1, keepdims=True)
    return np.square(wide).sum(axis=1) + epsilon * x.shape[1]


def _candidates(kind: str, epsilon: float, batches: Iterable[Rows]) -> np.ndarray | None:
    """The channels whose share of S varies most, as indices in order."""
    total: np.ndarray | None = None
    for rows in batches:
        lengths = squared_lengths(kind, epsilon, rows.x)
        part = ~rows.held_out & (lengths > 0)
        shares = np.square(np.asarray(rows.x[part], np.float64)) / lengths[part, None]
        own = rows.weights[part].astype(np.float64) @ np.square(shares)
        total = own if total is None else total + own
    if total is None or not total.any():
        return None
    return np.sort(np.argsort(-total, kind="stable")[: min(CANDIDATES, len(total))])


def _greedy(
    training: SquareSums, held_out: SquareSums, candidates: np.ndarray, most: int, floor: float
) -> Chosen | None:
    judged = held_out if held_out.tokens else training
    path = [_not_negative(training, [0])]
    errors = [judged.relative_error(*path[0])]
    while len(path) <= min(most, len(candidates)) and errors[-1] > SMALL_ENOUGH:
        best = _most_promising(training, *path[-1])
        if best is None:
            break
        more = _not_negative(training, [*path[-1][0], best])
        if len(more[0]) <= len(path[-1][0]):
            break
        path.append(more)
        errors.append(judged.relative_error(*more))
    enough = next(size for size, error in enumerate(errors) if error**2 <= (1 + LEFT_OVER) * min(errors) ** 2)
    if enough == 0:
        return None
    places, kappas = path[enough]
    strengths = kappas[1:] / max(float(kappas[0]), floor)
    return Chosen(Coupling(candidates[np.array(places[1:]) - 1], strengths), tuple(errors[: enough + 1]))


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

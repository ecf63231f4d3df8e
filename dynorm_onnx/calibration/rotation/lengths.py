"""A rotation of a stream in which few channels tell how long a token is, wherever a norm asks.

To norms nothing changes. Functions with coupled channels miss a norm by half the relative error to which these tell the
token's squared length S (norms/coupling.py), and which channels there are to choose from is up to the basis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from dynorm_onnx.calibration.norms.coupling import choose_coupling
from dynorm_onnx.calibration.norms.rows import Rows
from dynorm_onnx.calibration.rotation.directions import find_directions
from dynorm_onnx.calibration.rotation.length_tokens import LengthTokens
from dynorm_onnx.calibration.rotation.seen import MASSIVE_SHARE

FIXED_SHARE = 4  # one direction in so many, but one at least, may be a massive channel


@dataclasses.dataclass(frozen=True)
class ChosenDirections:
    """A rotation R [C, C] float64 whose first `count` columns are the directions that were sought.

    `before` and `after` are the relative errors of S, as a coupling of at most so many channels tells it in either
    basis: the root of the mean square over norms and held-out tokens that are not massive.
    """

    rotation: np.ndarray
    count: int
    before: float
    after: float


def choose_directions(
    norms: Sequence[LengthTokens], rng: np.random.Generator, progress: Callable[[int, int], None]
) -> ChosenDirections | str:
    """The rotation sought for the norms of one stream, or a sentence that says why there is none. The most massive
    channels are the first directions, as they are: in a few bits, no other channel should bear such numbers."""
    count = max(tokens.coupled for tokens in norms)
    fixed = _massive(norms)[: max(count // FIXED_SHARE, 1)]
    if len(fixed) >= count:
        return "the one channel that may be coupled is the massive one"
    with threadpool_limits(1, user_api="blas"):  # products over before another thread is there to help
        directions = find_directions(norms, fixed, count, rng, progress)
    rotation = rotation_to(directions)
    return ChosenDirections(rotation, count, length_error(norms), length_error(norms, rotation))


def rotation_to(directions: np.ndarray) -> np.ndarray:
    """R [C, C], orthogonal, that begins with the directions [C, k]; of all such that nearest to the identity behind
    them, so that channels stay what they were as far as they can."""
    count = directions.shape[1]
    free = np.linalg.qr(directions, mode="complete")[0][:, count:]
    left, _, right = np.linalg.svd(free[count:].T)
    return np.hstack([directions, free @ (left @ right)])


def length_error(norms: Sequence[LengthTokens], rotation: np.ndarray | None = None) -> float:
    """The error of S in the basis R [C, C], or in the stream's own, as ChosenDirections has it."""
    return float(np.sqrt(np.mean([_error(tokens, rotation) ** 2 for tokens in norms])))


def _error(tokens: LengthTokens, rotation: np.ndarray | None) -> float:
    narrow = None if rotation is None else rotation.astype(np.float32)

    def batches() -> Iterator[Rows]:
        for place, x in tokens.x.blocks():
            turned = x if narrow is None else x @ narrow
            yield Rows(turned, turned, np.ones(len(turned), np.float32), tokens.held_out[place])

    return choose_coupling(tokens.norm.kind, tokens.epsilon, batches, tokens.coupled).ordinary_error


def _massive(norms: Sequence[LengthTokens]) -> list[int]:
    """The channels that hold a large share of massive tokens at some norm, the largest first."""
    shares = np.max([tokens.massive for tokens in norms], axis=0)
    return [int(channel) for channel in np.argsort(-shares, kind="stable") if shares[channel] > MASSIVE_SHARE]

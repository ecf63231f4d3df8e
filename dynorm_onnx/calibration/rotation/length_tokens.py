"""What directions are sought on: tokens in front of some norms of a stream, and how long they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.coupling import MASSIVE, squared_lengths
from dynorm_onnx.calibration.data import signature
from dynorm_onnx.calibration.held_out import HeldOut, held_out_samples
from dynorm_onnx.calibration.observe import Observed, observe
from dynorm_onnx.calibration.rotation.tokens import massive_shares, spread, usable_rows_of
from dynorm_onnx.graph.basis import StreamBasis
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.runtime.arrays import Feeds

NORMS = 16
"""Of a stream, spread evenly: what directions are good for at one norm they are at the next, whose x is nearly the same
(docs/quality.md)."""

LOOKED_AT = 16_384
"""Tokens of the calibration data that the original is run on."""

MEMORY = 1 << 28  # bytes of the sampled tokens of a stream, at most


@dataclasses.dataclass(frozen=True, eq=False)
class LengthTokens:
    """Tokens at one norm of a stream.

    `x` [T, C] float16 is what it reads and `squares` [T] float32 the squared length that it divides by, in units of the
    median token's. `held_out` bool [T] are those that nothing is solved with, `ordinary` bool [T] those that are not
    massive; `massive` [C] is the share that each channel has of the squared length of those that are. `epsilon` is the
    norm's, in these units; `coupled` how many channels may be.
    """

    norm: LoweredNorm
    x: np.ndarray
    squares: np.ndarray
    held_out: np.ndarray
    ordinary: np.ndarray
    massive: np.ndarray
    epsilon: float
    coupled: int


def length_tokens_of(
    lowered: ir.Model,
    bases: Sequence[StreamBasis],
    batches: Sequence[Feeds],
    coupled: Mapping[str, int],
    rng: np.random.Generator,
    progress: Callable[[int, int], None],
) -> dict[StreamBasis, list[LengthTokens]]:
    """The tokens at some norms of each stream, in the order of the graph; `coupled` says by the norm's site how many
    channels may be. A norm that no token reaches is left out."""
    basis_of = {norm: basis for basis in bases for norm in _some(list(basis.read))}
    held_out = held_out_samples(batches, outermost=signature(lowered).has_samples_outermost)
    chosen = spread(batches, LOOKED_AT)
    found: dict[StreamBasis, list[LengthTokens]] = {basis: [] for basis in bases}
    order = [norm for basis in bases for norm in basis.read if norm in basis_of]
    for observed in observe(lowered, order, [batches[place] for place in chosen], progress):
        norm = observed[0]
        tokens = _tokens(observed, [held_out[place] for place in chosen], coupled[norm.site_name], rng)
        if tokens is not None:
            found[basis_of[norm]].append(tokens)
    return found


def _some(norms: Sequence[LoweredNorm]) -> list[LoweredNorm]:
    count = min(NORMS, len(norms))
    return [norms[round(place)] for place in np.linspace(0, len(norms) - 1, count)]


def _tokens(
    observed: Observed, held_out: Sequence[HeldOut | None], coupled: int, rng: np.random.Generator
) -> LengthTokens | None:
    norm = observed[0]
    x, others = (np.concatenate(parts) for parts in zip(*usable_rows_of(observed, held_out), strict=True))
    squares = squared_lengths(norm.kind, norm.epsilon, x)
    usual = float(np.median(squares)) if len(squares) else 0.0
    if not usual > 0:
        return None
    is_massive = squares > MASSIVE**2 * usual
    massive = massive_shares(x[is_massive], squares[is_massive])
    places = np.flatnonzero(squares > 0)
    most = MEMORY // (2 * x.shape[1] * NORMS)
    sample = rng.choice(places, most, replace=False) if len(places) > most else places
    return LengthTokens(
        norm,
        x=(x[sample] / np.sqrt(usual)).astype(np.float16),
        squares=(squares[sample] / usual).astype(np.float32),
        held_out=others[sample],
        ordinary=~is_massive[sample],
        massive=massive,
        epsilon=norm.epsilon / usual,
        coupled=coupled,
    )

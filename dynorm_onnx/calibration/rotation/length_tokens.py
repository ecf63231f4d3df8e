"""What directions are sought on: tokens in front of some norms of a stream, and how long they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.rotation.seen import Seen, seen_at
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
    found: dict[StreamBasis, list[LengthTokens]] = {basis: [] for basis in bases}
    for seen in seen_at(lowered, list(basis_of), batches, LOOKED_AT, progress):
        found[basis_of[seen.norm]].append(_tokens(seen, coupled[seen.norm.site_name], rng))
    return found


def _some(norms: Sequence[LoweredNorm]) -> list[LoweredNorm]:
    count = min(NORMS, len(norms))
    return [norms[round(place)] for place in np.linspace(0, len(norms) - 1, count)]


def _tokens(seen: Seen, coupled: int, rng: np.random.Generator) -> LengthTokens:
    most = MEMORY // (2 * seen.x.shape[1] * NORMS)
    sample = seen.sampled(np.ones(len(seen.x), bool), most, rng)
    return LengthTokens(
        seen.norm,
        x=(seen.x[sample] / np.sqrt(seen.usual)).astype(np.float16),
        squares=(seen.squares[sample] / seen.usual).astype(np.float32),
        held_out=seen.held_out[sample],
        ordinary=~seen.massive[sample],
        massive=seen.massive_shares,
        epsilon=seen.norm.epsilon / seen.usual,
        coupled=coupled,
    )

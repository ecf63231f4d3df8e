"""What directions are sought on: tokens in front of some norms of a stream, and how long they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.rotation.kept_rows import KeptRows
from dynorm_onnx.calibration.rotation.seen import Seen, seen_at
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.streams.basis import StreamBasis
from dynorm_onnx.runtime.arrays import Feeds

FIRST, NORMS = 4, 22
"""Norms of a stream: its first ones, and how many in all, the others spread evenly. What directions are good for at one
norm they are at the next, whose x is nearly the same; but not where a stream begins (docs/quality.md)."""

LOOKED_AT = 65_536
"""Tokens of the calibration data that the original is run on: of fewer, what tells their lengths tells those of others
less well (docs/quality.md)."""

DISK = 1 << 31  # bytes of the sampled tokens of a stream, at most


@dataclasses.dataclass(frozen=True, eq=False)
class LengthTokens:
    """Tokens at one norm of a stream.

    `x` [T, C] is what it reads and `squares` [T] float32 the squared length that it divides by, in units of the median
    token's. In random order, the first `sought_on` are those that directions are sought on; behind them are massive
    ones and those that are held out, `held_out` bool [T], with which nothing is solved. `massive` [C] is the share that
    each channel has of the squared length of massive tokens. `epsilon` is the norm's, in these units; `coupled` how
    many channels may be.
    """

    norm: LoweredNorm
    x: KeptRows
    squares: np.ndarray
    held_out: np.ndarray
    sought_on: int
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
    if len(norms) <= NORMS:
        return list(norms)
    others = np.linspace(FIRST, len(norms) - 1, NORMS - FIRST)
    return [*norms[:FIRST], *(norms[round(place)] for place in others)]


def _tokens(seen: Seen, coupled: int, rng: np.random.Generator) -> LengthTokens:
    most = DISK // (2 * seen.x.shape[1] * NORMS)
    sample = rng.permutation(seen.sampled(np.ones(len(seen.x), bool), most, rng))
    behind = seen.held_out[sample] | seen.massive[sample]
    sample = np.concatenate([sample[~behind], sample[behind]])
    return LengthTokens(
        seen.norm,
        x=KeptRows(seen.x[sample] / np.sqrt(np.float32(seen.usual))),
        squares=(seen.squares[sample] / seen.usual).astype(np.float32),
        held_out=seen.held_out[sample],
        sought_on=int(np.count_nonzero(~behind)),
        massive=seen.massive_shares,
        epsilon=seen.norm.epsilon / seen.usual,
        coupled=coupled,
    )

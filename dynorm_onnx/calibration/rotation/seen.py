"""What norms of a stream read on calibration data, as far as a rotation is sought on it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.data import signature
from dynorm_onnx.calibration.norms.coupling import MASSIVE, squared_lengths
from dynorm_onnx.calibration.norms.observe import Observed, observe, usable_rows
from dynorm_onnx.calibration.stages.held_out import HeldOut, held_out_rows, held_out_samples
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.runtime.arrays import Feeds

MASSIVE_SHARE = 0.02
"""A channel that holds on average so much of the squared length of massive tokens is massive."""


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """All usable tokens at one norm: `x` [T, C] float32, their squared lengths `squares` [T] float64, of which `usual`,
    above 0, is the median, and which are held out, bool [T]."""

    norm: LoweredNorm
    x: np.ndarray
    squares: np.ndarray
    usual: float
    held_out: np.ndarray

    @functools.cached_property
    def massive(self) -> np.ndarray:
        """Bool [T]: the tokens that are many times as long as the median."""
        return np.asarray(self.squares > MASSIVE**2 * self.usual)

    @functools.cached_property
    def massive_shares(self) -> np.ndarray:
        """[C]: the shares that channels hold of massive tokens, by their squared lengths."""
        if not self.massive.any():
            return np.zeros(self.x.shape[1])
        shares = np.square(self.x[self.massive]) / self.squares[self.massive][:, None]
        return np.asarray(shares.mean(0))

    def sampled(self, of: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
        """Places of tokens of `of`, bool [T], that have a length; a random choice where there are over `most`."""
        places = np.flatnonzero(of & (self.squares > 0))
        return rng.choice(places, most, replace=False) if len(places) > most else places


def seen_at(
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    batches: Sequence[Feeds],
    tokens: int,
    progress: Callable[[int, int], None],
) -> Iterator[Seen]:
    """What each norm reads on about so many tokens, in the order of the graph. A norm that no token of any length
    reaches is left out."""
    held_out = held_out_samples(batches, outermost=signature(lowered).has_samples_outermost)
    chosen = _spread(batches, tokens)
    for observed in observe(lowered, norms, [batches[place] for place in chosen], progress):
        norm, parts = observed[0], list(_rows(observed, [held_out[place] for place in chosen]))
        x, others = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        squares = squared_lengths(norm.kind, norm.epsilon, x)
        usual = float(np.median(squares)) if len(squares) else 0.0
        if usual > 0:
            yield Seen(norm, x, squares, usual, others)


def _spread(batches: Sequence[Feeds], tokens: int) -> list[int]:
    """Places of batches spread evenly, with about so many tokens in all."""
    largest = [max((array.size for array in feeds.values() if isinstance(array, np.ndarray)), default=1)
               for feeds in batches]  # fmt: skip
    wanted = min(max(-(-len(batches) * tokens // max(sum(largest), 1)), 1), len(batches))
    return [place * len(batches) // wanted for place in range(wanted)]


def _rows(observed: Observed, held_out: Sequence[HeldOut | None]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Usable rows [tokens, C] float32, batch by batch, and which of them are held out."""
    norm, activations = observed
    for batch, own in zip(activations(), held_out, strict=True):
        x = batch.original[str(norm.x.name)]
        usable = usable_rows(x, batch.token_weights)
        rows = x.reshape(-1, x.shape[-1])[usable].astype(np.float32)
        yield rows, held_out_rows(own, len(usable))[usable]

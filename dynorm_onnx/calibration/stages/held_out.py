"""Which samples are solved with, and which only choose: lambda, steepness, coupled channels, steps of a search.

A held-out sample is never solved with, by any layer. Were it, the next layer's inputs would be fitted to it already,
and what is chosen by it would be chosen on tokens that are better than any others (docs/quality.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dynorm_onnx.runtime.arrays import Feeds

SHARE = 8  # one sample in so many is held out


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What is held out of one batch of several samples in all."""

    samples: np.ndarray  # bool [samples]
    whole: bool | None = None  # where rows cannot be told apart by sample; None: there is no other batch


def held_out_samples(batches: Sequence[Feeds], *, outermost: bool = True) -> list[HeldOut | None]:
    """For every batch what is held out: one sample in SHARE, spread evenly, or one of fewer; and so of batches.

    Where samples are not the `outermost` axis, behind time say, no rows are of one sample alone, and batches count as
    samples. Where there is one sample in all, None: it is parted by its rows.
    """
    sizes = [_samples(feeds) if outermost else 1 for feeds in batches]
    if sum(sizes) < 2:
        return [None] * len(sizes)
    samples = np.split(_one_in_share(sum(sizes)), np.cumsum(sizes)[:-1])
    whole = _one_in_share(len(sizes)).tolist() if len(sizes) > 1 else [None]
    return [HeldOut(own, every) for own, every in zip(samples, whole, strict=True)]


def _one_in_share(count: int) -> np.ndarray:
    every = min(SHARE, count)
    return np.arange(count) % every == every - 1


def held_out_rows(held_out: HeldOut | None, rows: int) -> np.ndarray:
    """Bool [rows] for an array that is flattened to rows, the samples outermost: the rows of held-out samples.

    Rows that cannot be told apart by sample, of a norm over a whole batch say, are held out with their batch. Of a
    single batch the last in SHARE of the rows is, or one of fewer, but never the only one.
    """
    if held_out is not None:
        samples = held_out.samples
        if len(samples) and rows % len(samples) == 0:
            return np.repeat(samples, rows // len(samples))
        if held_out.whole is not None:
            return np.full(rows, held_out.whole)
    return np.arange(rows) >= rows - (max(rows // SHARE, 1) if rows > 1 else 0)


def _samples(feeds: Feeds) -> int:
    """The size of the first axis of most inputs."""
    sizes = [array.shape[0] for array in feeds.values() if isinstance(array, np.ndarray) and array.ndim]
    return max(set(sizes), key=sizes.count) if sizes else 1

"""Which samples are solved with, and which only choose: lambda, steepness, coupled channels, steps of a search.

A held-out sample is never solved with, by any layer. Were it, the next layer's inputs would be fitted to it already,
and what is chosen by it would be chosen on tokens that are better than any others (docs/quality.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynorm_onnx.runtime.arrays import Feeds

SHARE = 8  # one sample in so many is held out


def held_out_samples(batches: Sequence[Feeds]) -> list[np.ndarray | None]:
    """For every batch, bool [samples]: whether a sample is held out. One in SHARE is, spread evenly; one of fewer.

    Where there is one sample in all, None: it is parted by its rows.
    """
    sizes = [_samples(feeds) for feeds in batches]
    total = sum(sizes)
    if total < 2:
        return [None] * len(sizes)
    every = min(SHARE, total)
    return list(np.split(np.arange(total) % every == every - 1, np.cumsum(sizes)[:-1]))


def held_out_rows(samples: np.ndarray | None, rows: int) -> np.ndarray:
    """Bool [rows] for an array that is flattened to rows, the samples outermost: the rows of held-out samples.

    Where rows cannot be told apart by sample the last in SHARE of the rows, or one of fewer, but never the only one.
    """
    if samples is not None and len(samples) and rows % len(samples) == 0:
        return np.repeat(samples, rows // len(samples))
    return np.arange(rows) >= rows - (max(rows // SHARE, 1) if rows > 1 else 0)


def _samples(feeds: Feeds) -> int:
    """The size of the first axis of most inputs."""
    sizes = [array.shape[0] for array in feeds.values() if isinstance(array, np.ndarray) and array.ndim]
    return max(set(sizes), key=sizes.count) if sizes else 1

"""A part of some batches that is no larger than other batches, spread over all of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from dynorm_onnx.calibration.data.signature import ModelSignature
from dynorm_onnx.runtime.arrays import Feeds

T = TypeVar("T")


def part_like(batches: Sequence[Feeds], others: Sequence[Feeds], what: ModelSignature) -> tuple[Feeds, ...]:
    """Samples of `batches`, complete feeds of one model, with at most as many tokens as `others` have.

    Where the model fixes the size of a batch, or nothing says which axis counts samples, whole batches are taken, one
    at least; else single samples, joined as far as the largest of `others` goes.
    """
    budget = sum(_size(feeds, what) for feeds in others)
    if (
        what.fixed_batch is not None
        or what.takes_feeds_whole
        or any(samples_in(feeds, what) is None for feeds in batches)
    ):
        largest = max((_size(feeds, what) for feeds in batches), default=1)
        return tuple(_spread(batches, budget // max(largest, 1)))
    rows = [(batch, row) for batch, feeds in enumerate(batches) for row in range(samples_in(feeds, what) or 0)]
    longest = max((_size(feeds, what) // (samples_in(feeds, what) or 1) for feeds in batches), default=1)
    most = max((samples_in(feeds, what) or 1 for feeds in others), default=1)
    parts = []
    for batch, group in itertools.groupby(_spread(rows, budget // max(longest, 1)), key=lambda row: row[0]):
        chosen = [row for _, row in group]
        parts += [rows_of(batches[batch], chosen[at : at + most], what) for at in range(0, len(chosen), most)]
    return tuple(parts)


def _spread(items: Sequence[T], count: int) -> list[T]:
    count = min(max(count, 1), len(items))
    return [items[place * len(items) // count] for place in range(count)]


def _size(feeds: Feeds, what: ModelSignature) -> int:
    """Tokens, or samples of a model without tokens."""
    return feeds[what.tokens.name].size if what.tokens is not None else samples_in(feeds, what) or 1


def samples_in(feeds: Feeds, what: ModelSignature) -> int | None:
    """How many samples complete feeds hold; None where nothing says which axis counts them."""
    return next((feeds[spec.name].shape[spec.batch_axis] for spec in what.inputs if spec.batch_axis is not None), None)


def rows_of(feeds: Feeds, rows: Sequence[int], what: ModelSignature) -> Feeds:
    """Some samples of complete feeds."""
    axes = {spec.name: spec.batch_axis for spec in what.inputs}
    return {
        name: array if axes.get(name) is None else np.take(array, rows, axis=axes[name])
        for name, array in feeds.items()
    }

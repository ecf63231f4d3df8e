"""Whether a model takes several samples at once, found by running it: many files say so and do not.

A Reshape to numbers that were right for one sample, or one class token that is put in front of every sample, stands
behind an axis that has a name. The model then fails, or takes the samples for one long one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dynorm_onnx.calibration.data.part import rows_of, samples_in
from dynorm_onnx.calibration.data.signature import ModelSignature
from dynorm_onnx.errors import DynormError
from dynorm_onnx.runtime.arrays import Feeds, is_float
from dynorm_onnx.runtime.pieces import run_batches
from dynorm_onnx.runtime.session import Optimization

Opener = Callable[[Optimization], Any]
"""Opens the model as open_for_batches() does, with ONNX Runtime's optimisations or without."""

_MIXED = 0.2
"""Relative: samples that are quantised together change each other by a tenth of that."""


def is_for_one_sample(open_model: Opener, batches: Sequence[Feeds], what: ModelSignature) -> bool:
    """Whether two samples of the smallest batch that has so many cannot be run together, and one of them alone can.

    Asked of the nodes as they are written: ONNX Runtime optimises a Reshape to one sample into one that stretches, and
    fails where calibration cuts the graph. `batches` are complete.
    """
    if what.fixed_batch is not None or what.takes_feeds_whole:
        return False
    several = [feeds for feeds in batches if (samples_in(feeds, what) or 1) > 1]
    if not several:
        return False
    smallest = min(
        several, key=lambda feeds: sum(array.size for array in feeds.values()) / (samples_in(feeds, what) or 1)
    )
    model = open_model("none")
    alone = _outputs(model, rows_of(smallest, [0], what))
    if isinstance(alone, str):
        return False
    both = _outputs(model, rows_of(smallest, [0, 1], what))
    if isinstance(both, str):
        return True
    again = _outputs(model, rows_of(smallest, [0], what))  # noise differs from run to run and tells nothing
    return not isinstance(again, str) and _are_mixed(alone, both) and not _differ(alone, again)


def why_not(open_model: Opener, feeds: Feeds) -> str | None:
    """What ONNX Runtime says where the model fails on feeds."""
    made = _outputs(open_model("all"), feeds)
    return made if isinstance(made, str) else None


def _outputs(model: Any, feeds: Feeds) -> Feeds | str:
    """The outputs, or what ONNX Runtime says where the model fails."""
    try:
        (made,) = run_batches(model, [feeds])
    except DynormError as error:
        return str(error)
    return made


def _are_mixed(alone: Feeds, both: Feeds) -> bool:
    """Whether the first sample's outputs are not found in those of two, along whatever axis is then twice as long."""
    return _differ(alone, {name: _first_half(array, alone[name]) for name, array in both.items()})


def _first_half(both: Any, alone: Any) -> Any:
    shape, longer = np.shape(alone), np.shape(both)
    for axis, size in enumerate(shape):
        if longer == (*shape[:axis], 2 * size, *shape[axis + 1 :]):
            return np.take(both, range(size), axis=axis)
    return both


def _differ(alone: Feeds, other: Feeds) -> bool:
    """Whether an output has the same shape and other values; sizes that values decide tell nothing."""
    for name, expected in alone.items():
        got = other[name]
        if not isinstance(expected, np.ndarray) or not is_float(expected) or np.shape(got) != expected.shape:
            continue
        a, b = (np.nan_to_num(np.asarray(array, np.float64), posinf=0, neginf=0) for array in (expected, got))
        if np.linalg.norm(a - b) > _MIXED * np.linalg.norm(a):
            return True
    return False

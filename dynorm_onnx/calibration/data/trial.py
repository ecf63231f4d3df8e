"""Whether a model takes several samples at once, found by running it: many files say so and do not.

A Reshape to numbers that were right for one sample, or one class token that is put in front of every sample, stands
behind an axis that has a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynorm_onnx.calibration.data.part import rows_of, samples_in
from dynorm_onnx.calibration.data.signature import ModelSignature
from dynorm_onnx.errors import DynormError
from dynorm_onnx.runtime.arrays import Feeds
from dynorm_onnx.runtime.pieces import run_batches


def is_for_one_sample(model: Any, batches: Sequence[Feeds], what: ModelSignature) -> bool:
    """Whether the model fails on two samples of the smallest batch that has so many, and runs on one of them.

    `model` is what open_for_batches() gives, `batches` are complete.
    """
    if what.fixed_batch is not None or what.takes_feeds_whole:
        return False
    several = [feeds for feeds in batches if (samples_in(feeds, what) or 1) > 1]
    if not several:
        return False
    smallest = min(
        several, key=lambda feeds: sum(array.size for array in feeds.values()) / (samples_in(feeds, what) or 1)
    )
    return why_not(model, rows_of(smallest, [0, 1], what)) is not None and (
        why_not(model, rows_of(smallest, [0], what)) is None
    )


def why_not(model: Any, feeds: Feeds) -> str | None:
    """What ONNX Runtime says where the model fails on feeds."""
    try:
        for _ in run_batches(model, [feeds]):
            pass
    except DynormError as error:
        return str(error)
    return None

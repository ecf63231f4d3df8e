"""A part of the calibration batches that is no larger than the held-out ones."""

from __future__ import annotations

import numpy as np
import pytest

from dynorm_onnx.calibration.data.part import part_like
from dynorm_onnx.calibration.data.signature import InputSpec, ModelSignature
from dynorm_onnx.runtime.arrays import Feeds


def signature(batch: int | str = "batch", *, axis: int | None = 0) -> ModelSignature:
    inputs = (
        InputSpec("ids", np.dtype(np.int64), (batch, "length"), "token_ids", 100, axis),
        InputSpec("past", np.dtype(np.float32), (2, batch, 3), "past", None, None if axis is None else 1),
        InputSpec("flag", np.dtype(bool), (1,), "cache_flag", None, None),
    )
    return ModelSignature(inputs, None, None, {})


def batch(rows: int, length: int, start: int) -> Feeds:
    ids = start + np.arange(rows)[:, None] + np.zeros((1, length), np.int64)
    past = np.broadcast_to(ids[None, :, :1].astype(np.float32), (2, rows, 3))
    return {"ids": ids, "past": past, "flag": np.ones(1, bool)}


@pytest.mark.parametrize(
    ("held_out", "rows"), [([(2, 8)], [0, 10]), ([(1, 8)] * 5, [0, 4, 8, 12, 16]), ([(90, 8)], range(20))]
)
def test_samples_are_spread_and_no_more_than_the_others(held_out, rows) -> None:
    batches = [batch(8, 8, 0), batch(8, 8, 8), batch(4, 8, 16)]
    others = [batch(*shape, 50) for shape in held_out]
    parts = part_like(batches, others, signature())
    assert [int(row) for part in parts for row in part["ids"][:, 0]] == list(rows)
    for part in parts:
        np.testing.assert_array_equal(part["past"][0, :, 0], part["ids"][:, 0])
        assert part["flag"].shape == (1,)
        assert len(part["ids"]) <= max(len(other["ids"]) for other in others)


def test_one_sample_at_least() -> None:
    (part,) = part_like([batch(4, 100, 0)], [batch(1, 8, 9)], signature())
    assert part["ids"].shape == (1, 100)


@pytest.mark.parametrize("what", [signature(4), signature(axis=None)], ids=["fixed", "unknown"])
def test_batches_stay_whole_where_they_must(what: ModelSignature) -> None:
    batches = [batch(4, 8, start) for start in range(0, 40, 4)]
    parts = part_like(batches, [batch(4, 8, 50), batch(4, 8, 60)], what)
    assert [int(part["ids"][0, 0]) for part in parts] == [0, 20]
    assert all(part["ids"].shape == (4, 8) for part in parts)

"""Whole samples are held out, the same ones for every layer, whatever the batches and the layout of the rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynorm_onnx.calibration.stages.held_out import SHARE, HeldOut, held_out_rows, held_out_samples


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_one_sample_in_so_many(sizes: list[int]) -> None:
    flags = held_out_samples([{"ids": np.zeros((size, 4), np.int64)} for size in sizes])
    if sum(sizes) == 1:
        assert flags == [None]
        return
    assert [len(own.samples) for own in flags if own is not None] == sizes
    held, total = int(sum(own.samples.sum() for own in flags if own is not None)), sum(sizes)
    assert held == (total // SHARE or 1)


def test_all_rows_of_a_sample_go_together() -> None:
    samples = np.array([False, True, False])
    np.testing.assert_array_equal(held_out_rows(HeldOut(samples), 12), np.repeat(samples, 4))
    # per head: [batch, heads, length]
    np.testing.assert_array_equal(held_out_rows(HeldOut(samples), 3 * 2 * 4), np.repeat(samples, 8))


def test_one_sample_alone_gives_its_last_rows() -> None:
    rows = held_out_rows(None, 4 * SHARE)
    assert rows.sum() == 4
    assert rows[-4:].all()


@pytest.mark.parametrize("rows", [1, 3])
def test_a_sample_that_is_not_held_out_is_so_in_a_batch_of_its_own(rows: int) -> None:
    """A model of batch 1 with a norm behind pooling: one row in a batch, and all but one in SHARE to solve with."""
    flags = held_out_samples([{"x": np.zeros((1, 5))}] * SHARE)
    held = [bool(held_out_rows(own, rows).all()) for own in flags]
    assert held == [False] * (SHARE - 1) + [True]
    assert held_out_rows(None, 1).tolist() == [False], "the only row is solved with"


@pytest.mark.parametrize("rows", [1, 7])
def test_rows_that_no_sample_owns_go_with_their_batch(rows: int) -> None:
    """A norm over all axes makes one token of a batch of three."""
    flags = held_out_samples([{"x": np.zeros((3, 5))}] * 2 * SHARE)
    held = [held_out_rows(own, rows) for own in flags]
    assert [bool(own.all()) for own in held] == ([False] * (SHARE - 1) + [True]) * 2
    assert [bool(own.any()) for own in held] == ([False] * (SHARE - 1) + [True]) * 2


def test_samples_behind_time_are_held_out_with_their_batch() -> None:
    flags = held_out_samples([{"x": np.zeros((5, 2, 4))}] * SHARE, outermost=False)
    held = [held_out_rows(own, 10) for own in flags]
    assert [bool(own.all()) for own in held] == [bool(own.any()) for own in held] == [False] * (SHARE - 1) + [True]

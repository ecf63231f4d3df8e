"""Whole samples are held out, the same ones for every layer, whatever the batches and the layout of the rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynorm_onnx.calibration.held_out import SHARE, held_out_rows, held_out_samples


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_one_sample_in_so_many(sizes: list[int]) -> None:
    flags = held_out_samples([{"ids": np.zeros((size, 4), np.int64)} for size in sizes])
    assert [len(own) for own in flags] == sizes
    held, total = int(sum(own.sum() for own in flags)), sum(sizes)
    assert held == (total // SHARE or int(total > 1))


def test_all_rows_of_a_sample_go_together() -> None:
    samples = np.array([False, True, False])
    np.testing.assert_array_equal(held_out_rows(samples, 12), np.repeat(samples, 4))
    # per head: [batch, heads, length]
    np.testing.assert_array_equal(held_out_rows(samples, 3 * 2 * 4), np.repeat(samples, 8))


@pytest.mark.parametrize("samples", [None, np.array([False])], ids=["unknown", "one sample"])
def test_one_sample_alone_gives_its_last_rows(samples: np.ndarray | None) -> None:
    rows = held_out_rows(samples, 4 * SHARE)
    assert rows.sum() == 4
    assert rows[-4:].all()

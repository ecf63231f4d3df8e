"""A grid of blocks is what it says, place by place."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynorm_onnx.graph.quantised import Blocks, Grid

SIZES = st.integers(1, 7)


@given(SIZES, SIZES, SIZES, SIZES)
def test_each_place_has_the_number_of_its_block(inputs: int, outputs: int, rows: int, columns: int) -> None:
    numbers = np.arange(-(-inputs // rows) * -(-outputs // columns)).reshape(-(-inputs // rows), -1)
    blocks = Blocks.of(numbers, (inputs, outputs), (rows, columns))
    by_hand = [[numbers[k // rows, n // columns] for n in range(outputs)] for k in range(inputs)]
    np.testing.assert_array_equal(blocks.spread(), by_hand)
    np.testing.assert_array_equal([blocks.row(place) for place in range(inputs)], by_hand)
    np.testing.assert_array_equal(blocks.turned.spread(), np.transpose(by_hand))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (1, 4), (3, 4)], ids=str)
def test_numbers_that_broadcast(shape: tuple[int, ...]) -> None:
    numbers = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_array_equal(Blocks.of(numbers, (3, 4)).spread(), np.broadcast_to(numbers, (3, 4)))


@pytest.mark.parametrize(("shape", "block"), [((3,), None), ((2, 4), None), ((2, 1), (2, 3)), ((1, 1, 1), None)])
def test_numbers_that_do_not_fit(shape: tuple[int, ...], block: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError):
        Blocks.of(np.ones(shape), (3, 4), block)


def test_what_lies_on_the_grid_stays_and_all_else_goes_to_its_nearest() -> None:
    rng = np.random.default_rng(1)
    scale = Blocks.of(rng.uniform(0.1, 1.0, (3, 5)), (6, 5), (2, 1))
    grid = Grid(scale, Blocks.of(np.array([7.5]), (6, 5)), 0, 15, np.dtype(np.float32), factor=-2.0)
    whole = rng.integers(0, 16, (6, 5))
    np.testing.assert_array_equal(grid.whole(grid.values(whole)), whole)
    np.testing.assert_array_equal([grid.whole_row(k, row) for k, row in enumerate(grid.values(whole))], whole)
    free = 4 * rng.normal(size=(6, 5))
    every = np.stack([grid.values(np.full((6, 5), q)) for q in range(16)])
    nearest = np.take_along_axis(every, np.abs(every - free).argmin(0)[None], 0)[0]
    np.testing.assert_allclose(grid.values(grid.whole(free)), nearest)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_new_scales_are_rounded_to_their_type(dtype: type) -> None:
    old = Grid(Blocks.of(np.array(0.5), (2, 2)), Blocks.of(np.array(0.0), (2, 2)), -8, 7, np.dtype(dtype))
    numbers = old.with_scale(np.array([[1 / 3]])).scale.numbers
    assert numbers.dtype == np.float64 and numbers[0, 0] == np.float64(np.array(1 / 3).astype(dtype))
    assert numbers[0, 0] != 1 / 3


def test_a_scale_of_zero_gives_the_zero_point() -> None:
    grid = Grid(Blocks.of(np.zeros(()), (1, 2)), Blocks.of(np.array(8.0), (1, 2)), 0, 15, np.dtype(np.float32))
    np.testing.assert_array_equal(grid.whole(np.array([[1.0, -1.0]])), [[8, 8]])

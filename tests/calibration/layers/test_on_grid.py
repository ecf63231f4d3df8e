"""Weights on a grid: rounded in an order that makes up for itself, with scales that are least squares."""

from __future__ import annotations

import numpy as np
import pytest

from dynorm_onnx.calibration.layers import on_grid
from dynorm_onnx.calibration.layers.on_grid import (
    RATIOS,
    TOWARDS_OLD,
    Metric,
    fit_scales,
    nearest_scales,
    round_to_grid,
    round_with_scales,
)
from dynorm_onnx.graph.quantised import Blocks, Grid

K, N = 12, 10
BLOCKS = {"one": (K, N), "columns": (K, 1), "rows": (1, N), "of rows": (4, 1), "of columns": (1, 4), "cut": (5, 3)}


def metric(*, bias: bool = True, seed: int = 1) -> Metric:
    """Of 400 tokens with features that follow from each other."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(400, K)) @ rng.normal(size=(K, K)) + rng.normal(size=K)
    features = np.hstack([features, np.ones((400, 1))]) if bias else features
    return Metric(rng.normal(size=(K + bias, N)), features.T @ features, 1e-5)


def grid(block: tuple[int, int] = (K, N), *, dtype: type = np.float32, zero: float = 0.0, factor: float = 1.0) -> Grid:
    """4 bits, scales that differ."""
    count = [-(-size // own) for size, own in zip((K, N), block, strict=True)]
    scale = np.random.default_rng(2).uniform(0.3, 0.6, count).astype(dtype).astype(np.float64) / factor
    zeros = Blocks.of(np.array(zero), (K, N))
    return Grid(Blocks.of(scale, (K, N), block), zeros, -8, 7, np.dtype(dtype), factor)


@pytest.mark.parametrize("bias", [True, False])
def test_rounding_row_by_row_is_better_than_to_the_nearest(bias: bool) -> None:
    own, found = grid(), metric(bias=bias)
    rounded, nearest = round_to_grid(found, own), found.weights.copy()
    nearest[:K] = own.values(own.whole(found.weights[:K]))
    np.testing.assert_allclose(rounded[:K], own.values(own.whole(rounded[:K])))
    assert found.errors(rounded).sum() < 0.75 * found.errors(nearest).sum()


def test_the_bias_makes_up_for_what_it_can() -> None:
    found = metric()
    rounded = round_to_grid(found, grid())
    np.testing.assert_allclose(found.with_bias(rounded[:K]), rounded)
    for step in (-1e-3, 1e-3):
        moved = rounded.copy()
        moved[K] += step
        assert found.errors(moved).sum() > found.errors(rounded).sum()


def test_more_rows_than_one_block_are_rounded_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found, own = metric(), grid((4, 1))
    whole = round_to_grid(found, own)
    monkeypatch.setattr(on_grid, "BLOCK", 5)
    np.testing.assert_allclose(round_to_grid(found, own), whole)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
def test_scales_are_least_squares(block: str, bias: bool) -> None:
    """The same as a general solver's, the pull towards the old ones included."""
    found, own = metric(bias=bias), grid(BLOCKS[block], zero=1.0, factor=0.5)
    whole = own.whole(round_to_grid(found, own)[:K])
    root = np.linalg.cholesky(found.of_matrix(K)).T
    unknowns = own.scale.numbers.size
    by_scale = []
    for place in range(unknowns):
        numbers = np.zeros(unknowns)
        numbers[place] = 1.0
        of_one = Blocks.of(numbers.reshape(own.scale.numbers.shape), (K, N), BLOCKS[block]).spread()
        by_scale.append((root @ ((whole - 1.0) * 0.5 * of_one)).ravel())
    left, right = np.stack(by_scale, 1), (root @ found.weights[:K]).ravel()
    count, across = own.scale.numbers.shape
    diagonal = np.sum(left**2, 0).reshape(count, across).mean(0)
    pull = np.sqrt(TOWARDS_OLD * np.tile(diagonal, count))
    left, right = np.vstack([left, np.diag(pull)]), np.concatenate([right, pull * own.scale.numbers.ravel()])
    by_hand = np.linalg.lstsq(left, right)[0].reshape(own.scale.numbers.shape)
    np.testing.assert_allclose(fit_scales(found, own, whole), by_hand, rtol=1e-6)


def test_sums_of_few_columns_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for block in BLOCKS.values():
        found, own = metric(), grid(block)
        whole = own.whole(round_to_grid(found, own)[:K])
        at_once = fit_scales(found, own, whole)
        with monkeypatch.context() as patched:
            patched.setattr(on_grid, "SUMS_LIMIT", 1)
            np.testing.assert_allclose(fit_scales(found, own, whole), at_once)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("block", BLOCKS)
def test_new_scales_leave_less_error_and_are_of_their_type(block: str, dtype: type) -> None:
    found, own = metric(), grid(BLOCKS[block], dtype=dtype)
    rounded = round_to_grid(found, own)
    better, new = round_with_scales(found, own, rounded)
    assert found.errors(better).sum() < found.errors(rounded).sum() * 0.95
    np.testing.assert_array_equal(new.scale.numbers.astype(dtype).astype(np.float64), new.scale.numbers)
    np.testing.assert_allclose(better[:K], new.values(new.whole(better[:K])), atol=1e-12)


@pytest.mark.parametrize("block", BLOCKS)
def test_scales_to_begin_with_are_the_best_of_those_tried(block: str) -> None:
    found, own = metric(), grid(BLOCKS[block])
    rows, columns = BLOCKS[block]
    errors = []
    for ratio in RATIOS:
        tried = own.with_scale(own.scale.numbers * ratio)
        change = tried.values(tried.whole(found.weights[:K])) - found.weights[:K]
        squares = np.diag(found.shifted)[:K, None] * change**2
        errors.append([[squares[k : k + rows, n : n + columns].sum() for n in range(0, N, columns)]
                       for k in range(0, K, rows)])  # fmt: skip
    by_hand = own.scale.numbers * RATIOS[np.argmin(errors, 0)]
    np.testing.assert_allclose(nearest_scales(found, own), by_hand, rtol=1e-6)


def test_each_column_takes_what_is_best_for_it() -> None:
    found, own = metric(), grid((4, 1))
    rounded = round_to_grid(found, own)
    better, _ = round_with_scales(found, own, rounded)
    assert np.all(found.errors(better) <= found.errors(rounded) * (1 + 1e-12))


def test_scales_that_are_best_already_stay() -> None:
    own = grid((4, 1))
    whole = np.random.default_rng(3).integers(-8, 8, (K, N))
    whole[::4] = 7  # half the scale would not do
    on = Metric(own.values(whole), metric(bias=False).products, 1e-5)
    np.testing.assert_allclose(fit_scales(on, own, whole), own.scale.numbers)
    weights, found = round_with_scales(on, own, round_to_grid(on, own))
    np.testing.assert_array_equal(found.scale.numbers, own.scale.numbers)
    np.testing.assert_allclose(weights, on.weights)


def test_a_block_of_zeros_keeps_its_scale() -> None:
    own, found = grid((4, 1)), metric(bias=False)
    whole = own.whole(round_to_grid(found, own)[:K])
    whole[:4] = 0
    np.testing.assert_array_equal(fit_scales(found, own, whole)[0], own.scale.numbers[0])

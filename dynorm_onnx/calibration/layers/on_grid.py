"""Weights rounded to a grid so that the layer's outputs stay near what the free weights give; scales refitted too.

Rows are rounded one after the other, and what rounding a row changes in the outputs the rows that are still free make
up for: the update of GPTQ (Frantar et al., arXiv 2210.17323). For the whole numbers so found the best scales are least
squares once more, with one unknown for each scale; then the weights are rounded again, while that helps.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from dynorm_onnx.graph.quantised import Grid

BLOCK = 32  # rows whose updates of the rows behind are made together
ROUNDS = 2  # of scales and whole numbers in turn, at most
LEAST_GAIN = 1e-3  # of the squared error, for another round
TOWARDS_OLD = 1e-3
"""How strongly scales are held where they are, in units of the mean of the diagonal of their equations: a block whose
weights are all zero has no other say."""
RATIOS = 2.0 ** np.linspace(-1, 1, 17)
"""Times the old scales: where scales may begin."""
MOST_CHANGE = 4.0  # of a scale, times or by; what asks for more is left as it was
SUMS_LIMIT = 1 << 28  # bytes of the scales' equations that are held at once


@dataclasses.dataclass(frozen=True)
class Metric:
    """The squared error of a layer's outputs, by its inputs' F^T F [K (+ 1), K (+ 1)], around free weights.

    `weights` [K (+ 1), N], a bias behind the K rows of the matrix, are the ridge regression's, `strength` its lambda in
    units of the mean of the diagonal: so much of the identity belongs to the products.
    """

    weights: np.ndarray
    products: np.ndarray
    strength: float

    @functools.cached_property
    def shifted(self) -> np.ndarray:
        """The products with the ridge."""
        size = len(self.products)
        shift = max(self.strength, 1e-6) * np.trace(self.products) / size + 1e-300
        return self.products + shift * np.eye(size)

    @functools.cached_property
    def factor(self) -> np.ndarray:
        """The rows of the inverse's upper Cholesky factor: how the free rows make up for one that is rounded."""
        return np.linalg.cholesky(np.linalg.inv(self.shifted)).T

    def errors(self, weights: np.ndarray) -> np.ndarray:
        """Of other weights [K (+ 1), N]: the squared error that they add in each column, [N]."""
        change = weights - self.weights
        return np.sum(change * (self.shifted @ change), axis=0)

    def with_bias(self, matrix: np.ndarray) -> np.ndarray:
        """A matrix [K, N], and behind it the bias that suits it best, if there is one."""
        rows = len(matrix)
        if rows == len(self.weights):
            return matrix
        change = matrix - self.weights[:rows]
        bias = self.weights[rows] - self.shifted[rows, :rows] @ change / self.shifted[rows, rows]
        return np.vstack([matrix, bias])

    def of_matrix(self, rows: int) -> np.ndarray:
        """The products [K, K] of the matrix alone, its bias the best."""
        if rows == len(self.weights):
            return self.shifted
        beside = self.shifted[:rows, rows]
        return self.shifted[:rows, :rows] - np.outer(beside, beside) / self.shifted[rows, rows]


def round_to_grid(metric: Metric, grid: Grid) -> np.ndarray:
    """The weights [K (+ 1), N] with the first K rows on the grid; a bias behind them stays free, and makes up too."""
    rows, factor = grid.scale.shape[0], metric.factor
    free, rounded = metric.weights.astype(np.float64), metric.weights.astype(np.float64)
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        errors = np.zeros((stop - start, free.shape[1]))
        for row in range(start, stop):
            rounded[row] = grid.values_of_row(row, grid.whole_row(row, free[row]))
            errors[row - start] = (free[row] - rounded[row]) / factor[row, row]
            free[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], errors[row - start])
        free[stop:] -= factor[start:stop, stop:].T @ errors
    rounded[rows:] = free[rows:]
    return rounded


def round_with_scales(metric: Metric, grid: Grid, rounded: np.ndarray) -> tuple[np.ndarray, Grid]:
    """Weights [K (+ 1), N] of no more squared error on a grid of the same kind with scales of its own, and that grid.

    `rounded` is what round_to_grid() gave for `grid`. Scales for whole numbers, and whole numbers for scales, in turn
    end in the nearest of many optima. So they begin twice, with the scales as they are and with those that suit the
    free weights, which the old ones may cut off; and each block of columns takes what is best for it.
    """
    near = grid.with_scale(nearest_scales(metric, grid))
    ends = [_in_turn(metric, *begin) for begin in ((rounded, grid), (round_to_grid(metric, near), near))]
    found = _best_columns(*ends)
    return found.weights, found.grid


@dataclasses.dataclass(frozen=True)
class _Rounded:
    """Weights [K (+ 1), N] on a grid, and the squared error of each column, [N]."""

    weights: np.ndarray
    grid: Grid
    errors: np.ndarray

    @classmethod
    def of(cls, metric: Metric, weights: np.ndarray, grid: Grid) -> _Rounded:
        """With their errors."""
        return cls(weights, grid, metric.errors(weights))


def _in_turn(metric: Metric, weights: np.ndarray, grid: Grid) -> _Rounded:
    """Scales for whole numbers, whole numbers for scales, while the error falls."""
    rows, found = grid.scale.shape[0], _Rounded.of(metric, weights, grid)
    for _ in range(ROUNDS):
        whole = found.grid.whole(found.weights[:rows])
        own = found.grid.with_scale(fit_scales(metric, found.grid, whole))
        with_scales = _Rounded.of(metric, metric.with_bias(own.values(whole)), own)
        rounded_again = _Rounded.of(metric, round_to_grid(metric, own), own)
        before, found = found, _best_columns(found, with_scales, rounded_again)
        if not found.errors.sum() < before.errors.sum() * (1 - LEAST_GAIN):
            break
    return found


def _best_columns(*found: _Rounded) -> _Rounded:
    """Of several weights and their grids, alike but for the scales, the best for each block of columns: what is in one
    adds nothing to the error of another."""
    scale = found[0].grid.scale
    starts = np.arange(0, scale.shape[1], scale.columns)
    best = np.argmin([np.add.reduceat(one.errors, starts) for one in found], axis=0)
    of_column = np.repeat(best, scale.columns)[: scale.shape[1]]
    return _Rounded(
        np.choose(of_column, [one.weights for one in found]),
        found[0].grid.with_scale(np.choose(best, [one.grid.scale.numbers for one in found])),
        np.choose(of_column, [one.errors for one in found]),
    )


def nearest_scales(metric: Metric, grid: Grid) -> np.ndarray:
    """The scales [KB, NB], of RATIOS times the old ones, that round the free weights with least error, each input by
    itself."""
    scale, rows = grid.scale, grid.scale.shape[0]
    free, weight = metric.weights[:rows], np.diag(metric.shifted)[:rows, None]
    starts = np.arange(0, rows, scale.rows), np.arange(0, scale.shape[1], scale.columns)
    found, least = scale.numbers, np.full(scale.numbers.shape, np.inf)
    for ratio in RATIOS:
        own = grid.with_scale(ratio * scale.numbers)
        error = _block_sums(weight * np.square(own.values(own.whole(free)) - free), *starts)
        found, least = np.where(error < least, own.scale.numbers, found), np.minimum(error, least)
    return found


def fit_scales(metric: Metric, grid: Grid, whole: np.ndarray) -> np.ndarray:
    """The scales [KB, NB] of least squared error for whole numbers [K, N], not yet rounded to their type.

    A block of columns has equations of its own, with one unknown for each block of rows in it.
    """
    scale, rows = grid.scale, grid.scale.shape[0]
    count, across = scale.numbers.shape
    products = metric.of_matrix(rows)
    target = products @ metric.weights[:rows]
    found = np.empty_like(scale.numbers)
    step = max(1, SUMS_LIMIT // (8 * count * count))
    for first in range(0, across, step):
        blocks = slice(first, min(first + step, across))
        columns = slice(blocks.start * scale.columns, min(blocks.stop * scale.columns, scale.shape[1]))
        units = (whole[:, columns] - grid.zero.spread()[:, columns]) * grid.factor
        starts = np.arange(0, rows, scale.rows), np.arange(0, units.shape[1], scale.columns)
        right = _block_sums(units * target[:, columns], *starts)
        left = np.empty((blocks.stop - first, count, count))
        for place, start in enumerate(starts[0]):
            part = slice(start, start + scale.rows)
            left[:, :, place] = _block_sums(units * (products[:, part] @ units[part]), *starts).T
        found[:, blocks] = _solved(left, right, scale.numbers[:, blocks])
    change = np.divide(found, scale.numbers, out=np.ones_like(found), where=scale.numbers != 0)
    usable = np.isfinite(change) & (change > 1 / MOST_CHANGE) & (change < MOST_CHANGE)
    return np.where(usable, found, scale.numbers)


def _solved(left: np.ndarray, right: np.ndarray, old: np.ndarray) -> np.ndarray:
    """The solutions [KB, n] of n systems [n, KB, KB], held towards `old`."""
    count = left.shape[1]
    hold = TOWARDS_OLD * np.trace(left, axis1=1, axis2=2) / count + 1e-300
    missing = right.T[..., None] - left @ old.T[..., None]
    left[:, np.arange(count), np.arange(count)] += hold[:, None]
    return old + np.linalg.solve(left, missing)[..., 0].T


def _block_sums(array: np.ndarray, row_starts: np.ndarray, column_starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(np.add.reduceat(array, row_starts, axis=0), column_starts, axis=1)

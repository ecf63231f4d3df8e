"""Weights rounded to a grid so that the layer's outputs stay near what the free weights give.

Rows are rounded one after the other, and what rounding a row changes in the outputs the rows that are still free make
up for: the update of GPTQ (Frantar et al., arXiv 2210.17323).
"""

from __future__ import annotations

import numpy as np

from dynorm_onnx.graph.quantised import Grid

BLOCK = 128  # rows whose updates of the rows behind are made together


def round_to_grid(weights: np.ndarray, grid: Grid, products: np.ndarray, strength: float) -> np.ndarray:
    """`weights` [K (+ 1), N] with the first K rows on the grid; a bias behind them stays free, and makes up too.

    `products` is F^T F [K (+ 1), K (+ 1)] of the layer's inputs, `strength` the lambda of the ridge that gave the
    weights, in units of the mean of its diagonal.
    """
    rows = len(grid.scale)
    size = len(products)
    shift = max(strength, 1e-6) * np.trace(products) / size + 1e-300
    # The rows of the inverse's upper Cholesky factor: how the free rows make up for one that is rounded.
    factor = np.linalg.cholesky(np.linalg.inv(products + shift * np.eye(size))).T
    free, rounded = weights.astype(np.float64), weights.astype(np.float64)
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        errors = np.zeros((stop - start, weights.shape[1]))
        for row in range(start, stop):
            on_row = grid.row(row)
            rounded[row] = on_row.values(on_row.whole(free[row]))
            errors[row - start] = (free[row] - rounded[row]) / factor[row, row]
            free[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], errors[row - start])
        free[stop:] -= factor[start:stop, stop:].T @ errors
    rounded[rows:] = free[rows:]
    return rounded

"""The ridge solution against what a dense least squares gives."""

from __future__ import annotations

import numpy as np
import pytest

from dynorm_onnx.calibration.ridge import NormalSums, solve_ridge
from tests.tolerances import relative_error

TOKENS, FEATURES, OUTPUTS = 400, 12, 5


def sums_of(f: np.ndarray, r: np.ndarray) -> NormalSums:
    return NormalSums(f.T @ f, f.T @ r)


def data(noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    f = rng.normal(size=(TOKENS, FEATURES))
    true = rng.normal(size=(FEATURES, OUTPUTS))
    return f, f @ true + noise * rng.normal(size=(TOKENS, OUTPUTS)), true


def test_is_least_squares_on_all_tokens_where_that_generalises() -> None:
    f, r, true = data(noise=1e-3)
    ridge = solve_ridge(sums_of(f[:300], r[:300]), sums_of(f[300:], r[300:]))
    assert relative_error(ridge.correction, np.linalg.lstsq(f, r, rcond=None)[0]) < 1e-3
    assert relative_error(ridge.correction, true) < 1e-2


def test_nothing_to_learn_gives_no_correction() -> None:
    rng = np.random.default_rng(1)
    f, r = rng.normal(size=(40, 30)), rng.normal(size=(40, OUTPUTS))
    held_f, held_r = rng.normal(size=(4000, 30)), rng.normal(size=(4000, OUTPUTS))
    ridge = solve_ridge(sums_of(f, r), sums_of(held_f, held_r))
    change = sums_of(held_f, held_r).error_change(ridge.correction)
    assert change <= 0.02 * np.sum(held_r**2)  # at worst hardly harmful; mostly it is refused
    free = np.linalg.lstsq(f, r, rcond=None)[0]
    assert np.linalg.norm(ridge.correction) < 0.5 * np.linalg.norm(free)


def test_error_change_is_the_change_of_the_squared_error() -> None:
    f, r, _ = data(noise=0.5)
    correction = np.random.default_rng(2).normal(size=(FEATURES, OUTPUTS))
    expected = np.sum((f @ correction - r) ** 2) - np.sum(r**2)
    assert sums_of(f, r).error_change(correction) == pytest.approx(expected)


def test_features_that_are_always_zero_are_harmless() -> None:
    f, r, _ = data(noise=0.1)
    f[:, 3] = 0
    ridge = solve_ridge(sums_of(f[:300], r[:300]), sums_of(f[300:], r[300:]))
    assert np.all(np.isfinite(ridge.correction))
    assert np.allclose(ridge.correction[3], 0)

"""The ridge solution against what a dense least squares gives."""

from __future__ import annotations

import numpy as np
import pytest

from dynorm_onnx.calibration.layers.ridge import SKETCH, NormalSums, Ridge, TokenRows, sketch, solve_ridges
from tests.tolerances import relative_error

TOKENS, FEATURES, OUTPUTS = 400, 12, 5


def sums_of(f: np.ndarray, r: np.ndarray) -> NormalSums:
    return NormalSums(f.T @ f, f.T @ r, float(len(f)))


def solve_ridge(training: NormalSums, held_out: NormalSums) -> Ridge:
    """One layer alone."""
    return solve_ridges([training], [held_out])[0]


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


def test_layers_solved_together_are_those_solved_alone() -> None:
    f, _, _ = data(noise=0)
    rng = np.random.default_rng(4)
    targets = [
        f @ rng.normal(size=(FEATURES, n)) + noise * rng.normal(size=(TOKENS, n)) for n, noise in ((3, 0.1), (4, 30))
    ]
    training, held_out = ([sums_of(f[rows], r[rows]) for r in targets] for rows in (slice(0, 300), slice(300, None)))
    together = solve_ridges(training, held_out)
    for ridge, one, other in zip(together, training, held_out, strict=True):
        alone = solve_ridge(one, other)
        assert ridge.strength == alone.strength
        assert np.allclose(ridge.correction, alone.correction)
    assert together[0].strength != together[1].strength


def test_the_strength_of_many_outputs_is_chosen_as_well_by_a_sketch() -> None:
    rng = np.random.default_rng(5)
    outputs = 8 * SKETCH
    f = rng.normal(size=(TOKENS, FEATURES)) * np.logspace(0, -2, FEATURES)
    r = f @ rng.normal(size=(FEATURES, outputs)) + 0.3 * rng.normal(size=(TOKENS, outputs))
    training, held_out = sums_of(f[:300], r[:300]), sums_of(f[300:], r[300:])
    correction = training.solve(1e-2)
    exact = held_out.error_change(correction)
    assert sketch(held_out).error_change(sketch(training).solve(1e-2)) == pytest.approx(exact, rel=0.1)
    assert solve_ridge(training, held_out).correction.shape == (FEATURES, outputs)


def test_parts_side_by_side_are_one_layer() -> None:
    f, _, _ = data(noise=0)
    rng = np.random.default_rng(4)
    r = np.hstack([f @ rng.normal(size=(FEATURES, 3)) + noise * rng.normal(size=(TOKENS, 3)) for noise in (0.1, 30)])
    training, held_out = sums_of(f[:300], r[:300]), sums_of(f[300:], r[300:])
    places = (slice(0, 3), slice(3, 6))
    parts = solve_ridges(*([sums.columns(place) for place in places] for sums in (training, held_out)))
    joined = Ridge.side_by_side(parts)
    assert parts[0].strength != parts[1].strength
    assert joined.strength == max(part.strength for part in parts if part.strength is not None)
    for place, part in zip(places, parts, strict=True):
        assert np.array_equal(joined.correction[:, place], part.correction)
    nothing = Ridge(np.zeros((FEATURES, 2)), None)
    assert Ridge.side_by_side([nothing, nothing]).strength is None


def by_heart(training: NormalSums, held_out: NormalSums, ridge: Ridge) -> float:
    """The gain on a token that was solved with, beyond that on another."""
    own, others = (sums.error_change(ridge.correction) / sums.tokens for sums in (training, held_out))
    return others - own


def test_caution_learns_less_by_heart_and_leaves_most_of_the_gain_on_others() -> None:
    rng = np.random.default_rng(7)
    f = rng.normal(size=(TOKENS, FEATURES)) * np.logspace(0, -1.5, FEATURES)
    r = f @ rng.normal(size=(FEATURES, OUTPUTS)) + 1.5 * rng.normal(size=(TOKENS, OUTPUTS))
    training, held_out = sums_of(f[:30], r[:30]), sums_of(f[30:], r[30:])
    best, careful = (solve_ridges([training], [held_out], cautious=cautious)[0] for cautious in (False, True))
    assert best.strength is not None and careful.strength is not None and careful.strength > best.strength
    assert held_out.error_change(careful.correction) < 0.7 * held_out.error_change(best.correction) < 0
    assert by_heart(training, held_out, careful) < 0.7 * by_heart(training, held_out, best)


def test_caution_leaves_a_layer_that_could_only_learn_by_heart() -> None:
    rng = np.random.default_rng(1)
    f, r = (rng.normal(size=(4000, size)) for size in (30, OUTPUTS))
    r += 0.03 * f @ rng.normal(size=(30, OUTPUTS))
    training, held_out = sums_of(f[:40], r[:40]), sums_of(f[40:], r[40:])
    best, careful = (solve_ridges([training], [held_out], cautious=cautious)[0] for cautious in (False, True))
    assert best.strength is not None and held_out.error_change(best.correction) < 0
    assert careful.strength is None and not careful.correction.any()


def test_tokens_themselves_give_the_solution_of_their_sums() -> None:
    rng = np.random.default_rng(6)
    f, r = rng.normal(size=(20, 50)).astype(np.float32), rng.normal(size=(20, OUTPUTS)).astype(np.float32)
    rows, sums = TokenRows(f, r, 20.0), sums_of(f.astype(np.float64), r.astype(np.float64))
    for strength in (1e-3, 1.0):
        correction = sums.solve(strength)
        assert relative_error(rows.solve(strength), correction) < 1e-4
        assert rows.error_change(correction) == pytest.approx(sums.error_change(correction), rel=1e-4)
    halves = [TokenRows(f[part], r[part], 1.0) for part in (slice(0, 12), slice(12, None))]
    assert relative_error(halves[0].merge(halves[1]).solve(0.1), sums.solve(0.1)) < 1e-4

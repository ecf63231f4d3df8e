"""One scalar fitted to a norm: it comes back where there is one, and nothing near it is better."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynorm_onnx.calibration.norms.one_parameter import (
    fit_steepness,
    fit_steepness_to_bins,
    norm_core,
    pool,
    pooled_range,
    prefactor,
    scalars,
)
from dynorm_onnx.functions import FUNCTIONS, Function

functions = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)


@functions
@given(exponent=st.floats(-4, 4), scale=st.floats(0.1, 50), seed=st.integers(0, 9))
def test_a_function_finds_itself(function: Function, exponent: float, scale: float, seed: int) -> None:
    x = np.random.default_rng(seed).normal(0, 10.0**-exponent, 60)
    steepness = 10.0**exponent
    y = scale * function.core(x, **scalars(function, steepness))
    assert fit_steepness(function, x, y, scale) == pytest.approx(steepness, rel=1e-5)


@functions
def test_no_other_steepness_is_better(function: Function) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (50, 64))
    y = norm_core("rms", x)
    weights = rng.uniform(0.1, 2, x.size)

    def error(steepness: float) -> float:
        given_y = 8 * function.core(x.ravel(), **scalars(function, steepness))
        return float(weights @ np.square(given_y - y.ravel()))

    found = fit_steepness(function, x.ravel(), y.ravel(), 8.0, weights)
    least = error(found)
    assert all(error(found * factor) > least for factor in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0))


@functions
def test_bins_stand_for_the_elements(function: Function) -> None:
    rng = np.random.default_rng(1)
    parts = [rng.normal(0, 2, (80, 32)) * rng.lognormal(0, 0.5, (80, 1)) for _ in range(3)]
    extent = pooled_range(parts)
    binned = fit_steepness_to_bins(
        function, pool(((x, norm_core("rms", x)) for x in parts), extent), prefactor("rms", 32)
    )
    x = np.concatenate(parts)
    exact = fit_steepness(function, x.ravel(), norm_core("rms", x).ravel(), prefactor("rms", 32))
    assert binned == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_a_norm_reaches_its_prefactor_and_no_more(kind: str) -> None:
    x = np.random.default_rng(2).normal(0, 1, (5, 40))
    x[:, 7] += 1e9
    assert np.abs(norm_core(kind, x)).max() == pytest.approx(prefactor(kind, 40), rel=1e-6)  # type: ignore[arg-type]


def test_epsilon_is_in_the_norm() -> None:
    assert norm_core("rms", np.array([[3.0, 4.0]]), 12.5) == pytest.approx(np.array([[0.6, 0.8]]))

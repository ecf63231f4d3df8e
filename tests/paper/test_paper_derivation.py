"""The equations of docs/derivation.md, by numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynorm_onnx.calibration.norms.one_parameter import norm_core
from dynorm_onnx.functions import DERF, DYISRU, DYT

CHANNELS = 12
STEP = 1e-5


def slope(function, x: float) -> float:  # type: ignore[no-untyped-def]
    return float((function(x + STEP) - function(x - STEP)) / (2 * STEP))


@given(seed=st.integers(0, 1000), i=st.integers(0, CHANNELS - 1))
def test_the_norm_is_dyisru_with_the_other_squares(seed: int, i: int) -> None:
    x = np.random.default_rng(seed).normal(0, 3, CHANNELS)
    beta = np.square(np.delete(x, i)).sum()
    y = norm_core("rms", x)[i]
    assert y == pytest.approx(np.sqrt(CHANNELS) * DYISRU.core(x[i], beta=beta), rel=1e-12)


@given(seed=st.integers(0, 1000))
def test_the_derivative_of_the_norm(seed: int) -> None:
    x = np.random.default_rng(seed).normal(0, 3, CHANNELS)

    def y(value: float) -> float:
        return float(norm_core("rms", np.r_[value, x[1:]])[0])

    r = np.sqrt(np.square(x).mean())
    beta = np.square(x[1:]).sum()
    decoupled = 1 - y(x[0]) ** 2 / CHANNELS
    assert slope(y, x[0]) == pytest.approx(decoupled / r, rel=1e-5)
    assert slope(y, x[0]) == pytest.approx(np.sqrt(CHANNELS / beta) * decoupled**1.5, rel=1e-5)


@given(x=st.floats(-3, 3), alpha=st.floats(0.1, 2))
def test_each_function_solves_its_equation(x: float, alpha: float) -> None:
    beta = alpha**-2.0
    dyisru, dyt = (lambda v: DYISRU.core(v, beta=beta)), (lambda v: DYT.core(v, alpha=alpha))
    assert slope(dyisru, x) == pytest.approx(alpha * (1 - dyisru(x) ** 2) ** 1.5, rel=1e-4, abs=1e-9)
    assert slope(dyt, x) == pytest.approx(alpha * (1 - dyt(x) ** 2), rel=1e-4, abs=1e-9)


def test_slopes_at_zero_and_what_is_missing_far_out() -> None:
    x, beta, alpha = 60.0, 9.0, 0.05
    assert 1 - DYISRU.core(x, beta=beta) == pytest.approx(beta / (2 * x**2), rel=0.01)
    assert 1 - DYT.core(x, alpha=alpha) == pytest.approx(2 * np.exp(-2 * alpha * x), rel=0.01)
    tail = np.exp(-((alpha * x) ** 2)) / (alpha * x * np.sqrt(np.pi))
    assert 1 - DERF.core(np.array(x), alpha=alpha, shift=0.0) == pytest.approx(tail, rel=0.1)
    assert slope(lambda v: DERF.core(np.array(v), alpha=alpha, shift=0.0), 0.0) == pytest.approx(
        2 * alpha / np.sqrt(np.pi)
    )

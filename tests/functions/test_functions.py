"""The mathematics of the functions: bounds, monotony, symmetry, extremes, and the norm they come from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dynorm_onnx.functions import FUNCTIONS, REGISTRY, Function
from tests.tolerances import TOLERANCE, relative_error

every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
finite = st.floats(-1e38, 1e38)
moderate = st.floats(-1e3, 1e3)
positive = st.floats(1e-4, 1e4)


def scalars(function: Function, positive_value: float, shift: float = 0.0) -> dict[str, np.ndarray]:
    """A value for each parameter of the function, shape [1]."""
    values = {"beta": positive_value, "alpha": positive_value, "shift": shift}
    return {name: np.array([values[name]]) for name in function.parameter_names}


@every_function
@given(x=hnp.arrays(np.float64, 8, elements=finite), parameter=positive)
def test_is_odd_without_shift_and_bias(function: Function, x: np.ndarray, parameter: float) -> None:
    weight, bias = np.linspace(0.5, 2, 8), np.zeros(8)
    given_scalars = scalars(function, parameter)
    np.testing.assert_array_equal(
        function.reference(x, weight, bias, **given_scalars),
        -function.reference(-x, weight, bias, **given_scalars),
    )


@every_function
@given(x=hnp.arrays(np.float64, 8, elements=finite), parameter=positive, shift=st.floats(-3, 3))
def test_is_bounded_by_weight_and_bias(function: Function, x: np.ndarray, parameter: float, shift: float) -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=8), rng.normal(size=8)
    y = function.reference(x, weight, bias, **scalars(function, parameter, shift))
    assert np.all(np.isfinite(y))
    assert np.all(np.abs(y) <= np.abs(weight) + np.abs(bias) + 1e-12)


@every_function
@given(x=hnp.arrays(np.float64, 16, elements=finite), parameter=positive, shift=st.floats(-3, 3))
def test_rises_with_x(function: Function, x: np.ndarray, parameter: float, shift: float) -> None:
    y = function.reference(np.sort(x), np.ones(16), np.zeros(16), **scalars(function, parameter, shift))
    assert np.all(np.diff(y) >= -1e-15)  # libm's tanh and erf are monotone to their last place


@given(x=hnp.arrays(np.float64, (5, 12), elements=moderate))
def test_dyisru_with_the_sum_of_the_other_squares_is_rmsnorm(x: np.ndarray) -> None:
    x[:, 0] += 1.0  # no zero token: RMSNorm without epsilon is not defined there
    x[:, 1] -= 1.0
    x = np.where(np.abs(x) < 1e-3, 1e-3, x)
    gamma = np.linspace(-2, 2, 12)
    squares = x**2
    beta = np.stack([np.delete(squares, i, axis=1).sum(1) for i in range(12)], axis=1)
    rms = gamma * x / np.sqrt(squares.mean(1, keepdims=True))
    y = REGISTRY["dyisru"].reference(x, np.sqrt(12) * gamma, np.zeros(12), beta=beta)
    assert relative_error(y, rms) < TOLERANCE["double"]


@every_function
def test_nan_stays_nan_and_infinity_is_the_limit(function: Function) -> None:
    x = np.array([np.nan, np.inf, -np.inf])
    given_scalars = scalars(function, 2.0)
    if function.name == "dyisru":  # inf / inf: the reference is for finite x, as its docstring says
        x = np.array([np.nan, 1e300, -1e300])
    y = function.reference(x, np.full(3, 3.0), np.zeros(3), **given_scalars)
    assert np.isnan(y[0])
    np.testing.assert_allclose(y[1:], [3.0, -3.0])


def test_alpha_and_beta_agree_near_zero() -> None:
    x = np.linspace(-1e-3, 1e-3, 11)
    alpha = 0.05
    dyt = REGISTRY["dyt"].core(x, alpha)
    dyisru = REGISTRY["dyisru"].core(x, 1 / alpha**2)
    assert relative_error(dyisru, dyt) < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("beta", ["tiny", 1e-3, 2.0, "huge"])
def test_dyisru_keeps_its_digits_wherever_squares_do_not(dtype: type, beta: str | float) -> None:
    info = np.finfo(dtype)
    beta = {"tiny": float(info.tiny), "huge": float(info.max) / 2}.get(beta, beta)
    x = np.array([0, 1e-30, 1e-3, 1, 1e3, 1e18, 1e30, float(info.max) / 2], dtype)
    x = np.concatenate([-x, x]).reshape(-1, 1)
    expected = x.astype(np.longdouble) / np.sqrt(np.longdouble(beta) + np.square(x.astype(np.longdouble)))
    for part in (x, x[np.abs(x[:, 0]) <= 1e3]):  # squares of the latter are finite
        exact = expected[np.isin(x[:, 0], part[:, 0])]
        assert np.allclose(
            REGISTRY["dyisru"].core(part, np.array([beta], dtype)), exact, rtol=8 * info.eps, atol=info.tiny
        )

"""The gain of coupled channels: what it is at the ends of the line from a function to a norm, and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynorm_onnx.functions import FORMS, OPERATORS, REGISTRY, Coupling, NormParameters
from dynorm_onnx.functions.coupling import applied
from tests.tolerances import relative_error

CHANNELS = 12


def tokens(seed: int, count: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (count, CHANNELS))


def drawn(seed: int, size: int) -> Coupling:
    rng = np.random.default_rng(seed)
    return Coupling(rng.choice(CHANNELS, size, replace=False), rng.uniform(0.01, 2, size))


def test_no_channel_is_the_function_itself() -> None:
    x = tokens(0)
    np.testing.assert_array_equal(applied(None, x), x)
    np.testing.assert_array_equal(Coupling(np.zeros(0, int), np.zeros(0)).applied(x), x)


@given(st.integers(0, 100), st.floats(0.1, 10))
@settings(max_examples=25)
def test_all_other_channels_make_rms_norm(seed: int, scale: float) -> None:
    """beta_i c_j = 1 for every other channel, and beta_i next to nothing: the norm itself, whatever the length."""
    x = scale * tokens(seed)
    beta = 1e-9
    one = 3
    others = np.delete(np.arange(CHANNELS), one)
    coupling = Coupling(others, np.full(CHANNELS - 1, 1 / beta))
    parameters = NormParameters(
        np.full(CHANNELS, np.sqrt(CHANNELS)), np.zeros(CHANNELS), {"beta": np.array([beta])}, coupling
    )
    norm = x[:, one] / np.sqrt(np.mean(np.square(x), axis=1))
    assert relative_error(REGISTRY["dyisru"](x, parameters)[:, one], norm) < 1e-8


def test_it_is_the_sum_in_dyisrus_denominator() -> None:
    x, beta, coupling = tokens(1), np.linspace(1, 9, CHANNELS), drawn(1, 4)
    given_by = REGISTRY["dyisru"](x, NormParameters(np.ones(CHANNELS), np.zeros(CHANNELS), {"beta": beta}, coupling))
    kept = np.square(x[:, coupling.channels]) @ coupling.strengths
    assert relative_error(given_by, x / np.sqrt(np.square(x) + beta * kept[:, None] + beta)) < 1e-12


@given(st.integers(0, 100), st.integers(1, CHANNELS))
@settings(max_examples=25)
def test_gradient_against_differences(seed: int, size: int) -> None:
    x, coupling = tokens(seed, 2), drawn(seed, size)
    by_output = np.random.default_rng(seed + 1).normal(size=x.shape)
    given_by = coupling.pulled_back(x, by_output)
    step = 1e-6
    for place in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[place] = step
        difference = ((coupling.applied(x + moved) - coupling.applied(x - moved)) * by_output).sum() / (2 * step)
        assert given_by[place] == pytest.approx(difference, rel=1e-5, abs=1e-7)


def test_every_operator_has_a_name_of_its_own() -> None:
    assert len(OPERATORS) == len(REGISTRY) * len(FORMS)
    for op_type, (function, form) in OPERATORS.items():
        assert function.node_type(form) == op_type
        assert ("channels" in function.input_names(form)) is form.coupled
        assert ("skip" in function.input_names(form)) is form.skip

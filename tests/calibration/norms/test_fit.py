"""Moments stream and merge; the fit recovers what it was given and is a minimum."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynorm_onnx.calibration.norms.fit import fit
from dynorm_onnx.calibration.norms.moments import Moments, Range, moments_of
from dynorm_onnx.functions import FUNCTIONS, REGISTRY, Function
from tests.tolerances import relative_error

CHANNELS = 7
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)


def tokens(count: int, seed: int = 0) -> np.ndarray:
    """Activations as transformers have them: channels of unequal size, some tokens far larger."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, CHANNELS)) * np.exp(rng.normal(size=CHANNELS))
    x[:: max(count // 10, 1)] *= 20
    return x


def fit_of(function: Function, x: np.ndarray, target: np.ndarray):
    extent = Range.of(x)
    return fit(function, moments_of(x, target, extent), extent)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5))
@settings(max_examples=25)
def test_merged_moments_are_those_of_the_joined_data(sizes: list[int]) -> None:
    x, target = tokens(sum(sizes)), tokens(sum(sizes), seed=1)
    cuts = np.cumsum(sizes)[:-1]
    parts = list(zip(np.split(x, cuts), np.split(target, cuts), strict=True))
    extent = functools.reduce(Range.merge, (Range.of(part) for part, _ in parts))
    assert extent.tokens == len(x)
    np.testing.assert_array_equal(extent.largest, Range.of(x).largest)
    merged = functools.reduce(Moments.merge, (moments_of(a, b, extent) for a, b in parts))
    joined = moments_of(x, target, extent)
    for field in dataclasses.fields(Moments):
        np.testing.assert_allclose(getattr(merged, field.name), getattr(joined, field.name), rtol=1e-9, atol=1e-9)


@every_function
def test_recovers_a_function_of_its_own_kind(function: Function) -> None:
    x = tokens(4000)
    rng = np.random.default_rng(3)
    weight, bias = rng.uniform(0.5, 2, CHANNELS), rng.normal(size=CHANNELS)
    scalars = function.from_steepness(1 / np.abs(x).std(0), np.full(CHANNELS, 0.2))
    target = function.reference(x, weight, bias, **scalars)
    found = fit_of(function, x, target).parameters
    again = function.reference(x, found.weight, found.bias, **found.scalars)
    assert relative_error(again, target) < 2e-3


@every_function
def test_reports_the_error_that_it_leaves(function: Function) -> None:
    x = tokens(3000)
    norm = x / np.sqrt((x**2).mean(-1, keepdims=True))
    found = fit_of(function, x, norm)
    y = function.reference(x, found.parameters.weight, found.parameters.bias, **found.parameters.scalars)
    assert found.relative_error == pytest.approx(relative_error(y, norm), rel=0.02)


@every_function
def test_no_neighbour_is_better(function: Function) -> None:
    x = tokens(3000)
    norm = x / np.sqrt((x**2).mean(-1, keepdims=True))
    found = fit_of(function, x, norm).parameters
    best = relative_error(function.reference(x, found.weight, found.bias, **found.scalars), norm)
    name = function.parameter_names[0]
    for factor in (0.7, 1.4):
        moved = dict(found.scalars) | {name: found.scalars[name] * factor}
        core = function.reference(x, np.ones(CHANNELS), np.zeros(CHANNELS), **moved)
        lines = [np.polyfit(core[:, i], norm[:, i], 1) for i in range(CHANNELS)]
        y = np.stack([np.polyval(line, core[:, i]) for i, line in enumerate(lines)], axis=1)
        assert relative_error(y, norm) > best - 2e-3


def test_a_dead_channel_and_tokens_that_are_not_finite_do_no_harm() -> None:
    x = tokens(500)
    x[:, 2] = 0
    norm = x / np.sqrt((x**2).mean(-1, keepdims=True))
    clean = fit_of(REGISTRY["dyisru"], x, norm)
    spoilt, target = np.vstack([x, np.full(CHANNELS, np.nan)]), np.vstack([norm, np.ones(CHANNELS)])
    found = fit_of(REGISTRY["dyisru"], spoilt, target)
    for name in ("weight", "bias"):
        assert np.all(np.isfinite(getattr(found.parameters, name)))
        np.testing.assert_allclose(getattr(found.parameters, name), getattr(clean.parameters, name))
    assert np.all(found.parameters.scalars["beta"] > 0)

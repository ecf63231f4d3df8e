"""Channels are coupled for what they tell of a token's length, and no more of them than tell anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from dynorm_onnx.calibration.norms.coupling import choose_coupling, squared_lengths
from dynorm_onnx.calibration.norms.fit_rows import Leeway, fit_rows
from dynorm_onnx.calibration.norms.rows import Rows
from dynorm_onnx.functions import FUNCTIONS, REGISTRY, Function

CHANNELS, TOKENS, MASSIVE = 24, 4000, 5


def norm(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.square(x).mean(1, keepdims=True))


def batches(x: np.ndarray) -> Callable[[], Iterator[Rows]]:
    """Two batches; every eighth row is held out."""

    def read() -> Iterator[Rows]:
        for part in np.array_split(x.astype(np.float32), 2):
            held_out = np.arange(len(part)) % 8 == 0
            yield Rows(part, norm(part).astype(np.float32), np.ones(len(part), np.float32), held_out)

    return read


def with_sinks(seed: int = 0) -> np.ndarray:
    """Tokens of nearly one length, one in a hundred massive in one channel."""
    x = np.random.default_rng(seed).normal(size=(TOKENS, CHANNELS))
    x[::100, MASSIVE] = 300
    return x


def test_a_massive_channel_is_taken_first_with_the_norms_own_strength() -> None:
    chosen = choose_coupling("rms", 0.0, batches(with_sinks()), 1)
    assert chosen.coupling is not None
    assert list(chosen.coupling.channels) == [MASSIVE]
    # its square enters as it is, and S without it is about CHANNELS - 1 (less, for the least relative error)
    assert chosen.coupling.strengths[0] == pytest.approx(1 / (CHANNELS - 1), rel=0.4)
    assert chosen.length_errors[1] < chosen.length_errors[0]


def test_strong_channels_come_before_weak_ones() -> None:
    x = np.random.default_rng(1).normal(size=(TOKENS, CHANNELS))
    x[:, [3, 7, 11]] *= [8, 6, 4]
    chosen = choose_coupling("rms", 0.0, batches(x), 3)
    assert chosen.coupling is not None
    assert list(chosen.coupling.channels) == [3, 7, 11]
    assert list(chosen.length_errors) == sorted(chosen.length_errors, reverse=True)


def test_none_where_all_tokens_have_one_length() -> None:
    x = norm(np.random.default_rng(2).normal(size=(TOKENS, CHANNELS)))
    assert choose_coupling("rms", 0.0, batches(x), 8).coupling is None


def test_no_more_than_allowed_and_none_twice() -> None:
    x = np.random.default_rng(3).normal(size=(TOKENS, CHANNELS)) * np.arange(1, CHANNELS + 1)
    for most in (1, 4, CHANNELS, 2 * CHANNELS):
        chosen = choose_coupling("rms", 1e-6, batches(x), most)
        assert chosen.coupling is not None
        channels = list(chosen.coupling.channels)
        assert len(channels) == len(set(channels)) <= min(most, CHANNELS)
        assert len(chosen.length_errors) == len(channels) + 1
        assert (chosen.coupling.strengths > 0).all()


def test_layer_norms_lengths_are_those_of_the_centred_token() -> None:
    x = np.random.default_rng(4).normal(3, 1, (50, CHANNELS))
    assert squared_lengths("layer", 0.5, x) == pytest.approx(CHANNELS * (x.var(axis=1) + 0.5))
    assert squared_lengths("rms", 0.5, x) == pytest.approx(np.square(x).sum(1) + CHANNELS * 0.5)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
def test_one_channel_cures_the_sinks_of_every_function(function: Function) -> None:
    x = with_sinks()
    sinks = x[::100]

    def missed(most: int) -> float:
        fitted = fit_rows(function, "rms", 0.0, batches(x), Leeway(most))
        error = function(sinks, fitted.parameters) - norm(sinks)
        others = np.delete(error, MASSIVE, axis=1)
        return float(np.sqrt(np.square(others).mean()))  # a norm gives next to 0 there

    assert missed(0) > 0.5
    assert missed(1) < 0.1


def test_held_out_error_is_of_tokens_not_solved_with() -> None:
    fitted = fit_rows(REGISTRY["dyisru"], "rms", 0.0, batches(with_sinks()), Leeway(1))
    assert fitted.held_out_error == pytest.approx(fitted.relative_error, rel=0.2)
    assert fitted.held_out_error != fitted.relative_error


@pytest.mark.parametrize("epsilon", [np.nan, np.inf])
def test_lengths_that_are_no_numbers_couple_nothing(epsilon: float) -> None:
    assert choose_coupling("rms", epsilon, batches(with_sinks()), 4).coupling is None

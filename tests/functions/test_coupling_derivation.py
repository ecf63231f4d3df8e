"""What docs/derivation.md derives of coupled channels: where the function is RMSNorm itself."""

from __future__ import annotations

import numpy as np
import pytest

from dynorm_onnx.functions import DYISRU, Coupling, NormParameters

C, EPSILON = 12, 1e-2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, C)) * RNG.uniform(0.1, 30, size=(50, 1))
X[0, 3] = 1e4
GAMMA = RNG.uniform(0.5, 2, C)
NORM = GAMMA * X / np.sqrt(np.mean(X**2, axis=1, keepdims=True) + EPSILON)


@pytest.mark.parametrize("channel", [0, 3, 11])
def test_one_channel_with_all_others_coupled_is_the_norm(channel: int) -> None:
    beta = C * EPSILON
    others = np.delete(np.arange(C), channel)
    coupling = Coupling(others, np.full(C - 1, 1 / beta))
    y = DYISRU(X, NormParameters(np.sqrt(C) * GAMMA, np.zeros(C), {"beta": np.full(C, beta)}, coupling))
    np.testing.assert_allclose(y[:, channel], NORM[:, channel], rtol=1e-12)


def test_all_channels_coupled_and_straight_lines_are_the_norm() -> None:
    beta = np.full(C, 1e16)  # so large that the core is a line of slope 1 / sqrt(beta)
    coupling = Coupling(np.arange(C), np.full(C, 1 / (C * EPSILON)))
    y = DYISRU(X, NormParameters(GAMMA / np.sqrt(EPSILON) * np.sqrt(beta), np.zeros(C), {"beta": beta}, coupling))
    np.testing.assert_allclose(y, NORM, rtol=1e-9)


def test_some_channels_coupled_are_the_norm_where_the_rest_is_as_it_was_taken() -> None:
    """With 1 / B for every strength, for tokens whose other channels have squares of the sum B."""
    kept = np.array([3, 7])
    x = X.copy()
    rest = np.delete(np.arange(C), kept)
    x[:, rest] *= np.sqrt(5 / np.sum(x[:, rest] ** 2, axis=1, keepdims=True))
    norm = GAMMA * np.sqrt(C) * x / np.sqrt(np.sum(x**2, axis=1, keepdims=True))
    beta = 5 - x[:, rest] ** 2  # B_i: all the others outside M
    for token in range(len(x)):
        for place, channel in enumerate(rest):
            one = np.full(C, beta[token, place])
            coupling = Coupling(kept, np.full(2, 1 / beta[token, place]))
            y = DYISRU(x[token], NormParameters(np.sqrt(C) * GAMMA, np.zeros(C), {"beta": one}, coupling))
            np.testing.assert_allclose(y[channel], norm[token, channel], rtol=1e-12)

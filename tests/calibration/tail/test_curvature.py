"""The curvature is that of the KL: by columns exactly, between them not at all; and it is solved with its ridge."""

from __future__ import annotations

import numpy as np
import pytest

from dynorm_onnx.calibration.tail.curvature import Curvature, LayerCurvature, by_inputs, by_logits
from dynorm_onnx.calibration.tail.divergence import Distributions, log_softmax
from tests.tolerances import relative_error

TOKENS, CHANNELS, WORDS = 50, 4, 6
RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(TOKENS, CHANNELS)), RNG.normal(size=(CHANNELS, WORDS))
Q = np.exp(log_softmax(X @ W))


def test_by_logits_is_the_second_derivative_of_the_kl() -> None:
    words, step = Distributions.of_logits(X @ W), 1e-4
    for word in range(WORDS):
        moved = np.zeros(WORDS)
        moved[word] = step
        ends = [words.kl(X @ W + sign * moved) for sign in (1, -1)]
        assert sum(ends) / step**2 / TOKENS == pytest.approx(by_logits(Q)[word], rel=1e-4)


def test_by_inputs_is_the_second_derivative_of_the_kl() -> None:
    step = 1e-4
    for channel in range(CHANNELS):
        moved = np.zeros(CHANNELS)
        moved[channel] = step
        for token in (0, 7):
            words = Distributions.of_logits(X[token : token + 1] @ W)
            ends = [words.kl((X[token : token + 1] + sign * moved) @ W) for sign in (1, -1)]
            assert sum(ends) / step**2 == pytest.approx(by_inputs(Q, W)[token, channel], rel=1e-4)


@pytest.mark.parametrize("ridge", [0.01, 10.0])
def test_solve_is_the_inverse(ridge: float) -> None:
    outputs = RNG.uniform(0.1, 1.0, WORDS)
    layer, bias = LayerCurvature.of(X, outputs), LayerCurvature.of_bias(outputs)
    dense = np.kron(X.T @ X / TOKENS, np.diag(outputs))
    assert layer.trace == pytest.approx(np.trace(dense)) and bias.trace == pytest.approx(outputs.sum())
    curvature = Curvature([layer, bias])
    vector = RNG.normal(size=CHANNELS * WORDS + WORDS)
    expected = np.concatenate(
        [
            np.linalg.solve(dense + ridge * layer.trace * np.eye(len(dense)), vector[: len(dense)]),
            vector[len(dense) :] / (outputs + ridge * bias.trace),
        ]
    )
    assert relative_error(curvature.solve(vector, ridge), expected) < 0.01  # and a damping of a thousandth
    assert list(curvature.traces()) == [layer.trace] * len(dense) + [bias.trace] * WORDS


def test_directions_without_a_token_are_not_left() -> None:
    flat = np.hstack([X, X[:, :1]])  # of rank 4
    solved = LayerCurvature.of(flat, np.ones(WORDS)).solve(np.ones((CHANNELS + 1, WORDS)), 0.0)
    assert np.all(np.isfinite(solved))


def test_where_nothing_matters_the_steps_are_finite() -> None:
    solved = LayerCurvature.of(np.zeros((3, CHANNELS)), np.zeros(WORDS)).solve(np.zeros((CHANNELS, WORDS)), 0.5)
    assert np.array_equal(solved, np.zeros((CHANNELS, WORDS)))

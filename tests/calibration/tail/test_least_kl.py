"""The search gains what held-out tokens gain, takes no more steps than those allow, and little from few tokens."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from dynorm_onnx.calibration.tail.curvature import Curvature, LayerCurvature, by_logits
from dynorm_onnx.calibration.tail.divergence import Distributions, log_softmax
from dynorm_onnx.calibration.tail.least_kl import are_too_many, least_kl, sampling_step

CHANNELS, WORDS = 12, 7
RIGHT = np.random.default_rng(0).normal(size=(CHANNELS, WORDS))
START = RIGHT + 0.5 * np.random.default_rng(1).normal(size=RIGHT.shape)


class Tokens:
    """x [T, CHANNELS], and words that RIGHT gives them, or one drawn from those where `drawn`."""

    def __init__(self, count: int, seed: int, *, drawn: bool) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(count, CHANNELS))
        logits = self.x @ RIGHT
        if drawn:  # by Gumbel's trick
            word = np.argmax(logits + rng.gumbel(size=logits.shape), 1)
            logits = np.where(np.arange(WORDS) == word[:, None], 20.0, 0.0)
        self.words = Distributions.of_logits(logits)

    def kl(self, flat: np.ndarray) -> float:
        return self.words.kl(self.x @ flat.reshape(RIGHT.shape)) / len(self.x)

    def kl_and_gradient(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = self.words.kl_and_gradient(self.x @ flat.reshape(RIGHT.shape))
        return value / len(self.x), (self.x.T @ gradient).ravel() / len(self.x)


def found(training: Tokens, held_out: Tokens, start: np.ndarray) -> np.ndarray | None:
    q = np.exp(log_softmax(training.x @ start))
    curvature = Curvature([LayerCurvature.of(training.x, by_logits(q))])
    return least_kl("layer", training.kl_and_gradient, held_out.kl, start.ravel(), curvature, len(training.x))


def test_what_can_be_made_up_for_is(caplog: pytest.LogCaptureFixture) -> None:
    training, held_out = Tokens(2000, 2, drawn=False), Tokens(500, 3, drawn=False)
    with caplog.at_level(logging.INFO):
        weights = found(training, held_out, START)
    assert weights is not None
    assert held_out.kl(weights) < 1e-3 * held_out.kl(START.ravel())
    assert "layer: held-out KL" in caplog.text


@pytest.mark.parametrize("tokens", [100, 2000])
def test_few_tokens_are_not_learned_by_heart(tokens: int) -> None:
    truth = Tokens(4000, 5, drawn=False)
    weights = found(Tokens(tokens, 4, drawn=True), Tokens(500, 6, drawn=True), START)
    assert weights is not None and truth.kl(weights) < truth.kl(START.ravel())


def test_nothing_where_nothing_is_gained() -> None:
    training, held_out = Tokens(40, 7, drawn=True), Tokens(500, 8, drawn=False)
    assert found(training, held_out, RIGHT) is None


def test_as_many_tokens_as_the_work_allows() -> None:
    assert sampling_step(1000, 10, limit=1e4) == 1 and sampling_step(1000, 10, limit=2.5e3) == 4
    assert not are_too_many(1 << 20) and are_too_many(1 << 26)

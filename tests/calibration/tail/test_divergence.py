"""The KL and its gradient are those of their definition, however the tokens are parted."""

from __future__ import annotations

import numpy as np
import pytest

from dynorm_onnx.calibration.tail import divergence
from dynorm_onnx.calibration.tail.divergence import Distributions, log_softmax
from tests.tolerances import relative_error

TOKENS, WORDS = 700, 11


def logits(seed: int, size: float = 3.0) -> np.ndarray:
    return size * np.random.default_rng(seed).normal(size=(TOKENS, WORDS))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0.1, 3.0, 300.0])
def test_the_definition(dtype: type, size: float) -> None:
    original, converted = logits(0, size), logits(1, size)
    log_p, log_q = log_softmax(original), log_softmax(converted)
    words = Distributions.of_logits(original.astype(dtype))
    expected = np.sum(np.exp(log_p) * (log_p - log_q))
    assert words.kl(converted.astype(dtype)) == pytest.approx(expected, rel=1e-5)
    value, gradient = words.kl_and_gradient(converted.astype(dtype))
    assert value == words.kl(converted.astype(dtype)) and gradient.dtype == dtype
    assert relative_error(gradient, np.exp(log_q) - np.exp(log_p)) < 1e-5


def test_no_distance_to_itself_and_none_from_a_constant() -> None:
    words = Distributions.of_logits(logits(0))
    assert words.kl(logits(0)) == pytest.approx(0, abs=1e-9)
    assert words.kl(logits(1)) == pytest.approx(words.kl(logits(1) + 100))


def test_parts_are_all_tokens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Distributions.of_logits(logits(0))
    assert [len(words[rows]) for rows in words.parts()] == [TOKENS]
    monkeypatch.setattr(divergence, "PART_LIMIT", 1)
    assert [len(words[rows]) for rows in words.parts()] == [256, 256, 188]
    by_part = sum(words[rows].kl(logits(1)[rows]) for rows in words.parts())
    assert by_part == pytest.approx(words.kl(logits(1)))
    joined = Distributions.joined([words[rows] for rows in words.parts()])
    assert np.array_equal(joined.p, words.p) and np.array_equal(joined.negentropy, words.negentropy)

"""Text that a language model writes: of the model's own distribution, with a cache and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynorm_onnx.calibration.data import signature
from dynorm_onnx.calibration.data.drafts import Drafts
from dynorm_onnx.calibration.data.drawing import draw
from dynorm_onnx.calibration.data.missing import complete
from dynorm_onnx.calibration.data.sampling import sample_texts
from dynorm_onnx.errors import ModelError
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import make_session
from tests.calibration.tiny_models import VOCABULARY, language_model


def sampled(model: ir.Model, *, count: int, length: int, seed: int = 0, first_token: int | None = 4) -> np.ndarray:
    session = make_session(model, threads=1)
    return sample_texts(
        signature(model),
        session,
        np.random.default_rng(seed),
        count=count,
        length=length,
        first_token=first_token,
        progress=lambda done, total: None,
    )


def distribution(model: ir.Model, texts: np.ndarray) -> np.ndarray:
    """Softmax of the logits at every position, float64 [n, length, V]."""
    what = signature(model)
    feeds = complete({"input_ids": texts}, what, np.random.default_rng(0))
    logits = run(make_session(model), feeds, ["logits"])["logits"].astype(np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_draws_follow_the_softmax() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.25, 1e-30], np.float32))
    drawn = draw(np.broadcast_to(logits, (100_000, 4)), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / drawn.size, [0.5, 0.25, 0.25, 0], atol=0.01)


def test_tokens_that_the_model_rules_out_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf])
    assert set(draw(np.broadcast_to(logits, (1000, 3)), np.random.default_rng(0))) == {1}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite(bad: float) -> None:
    with pytest.raises(ModelError, match="logits are not finite"):
        draw(np.array([[0.0, bad]]), np.random.default_rng(0))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 8))
def test_guesses_repeat_what_was_learned(text: list[int], count: int) -> None:
    drafts = Drafts()
    drafts.learn(text, len(text))
    guessed = drafts.guess(text[:-1], count)
    assert len(guessed) <= count
    assert set(guessed) <= set(text)


def test_a_guess_is_how_it_went_on_before() -> None:
    drafts = Drafts()
    drafts.learn([1, 2, 3, 4, 5, 6, 7, 8], 8)
    assert drafts.guess([9, 2, 3], 4) == [4, 5, 6, 7]
    assert drafts.guess([9, 9, 9], 4) == []


CACHES: dict[str, dict[str, Any]] = {
    "cache": {"cache": True},
    "no cache": {},
    "no mask": {"mask": False, "positions": False},
}


@pytest.mark.parametrize("inputs", CACHES.values(), ids=CACHES)
def test_texts_have_the_models_own_distribution(inputs: dict[str, Any]) -> None:
    model = language_model(**inputs)
    texts = sampled(model, count=1500, length=8)
    assert texts.shape == (1500, 8) and (texts[:, 0] == 4).all()
    expected = distribution(model, texts)
    # tokens seen at each place against the mean of what the model gives there; 4 sigma of 1500 draws
    for place in range(1, 8):
        seen = np.bincount(texts[:, place], minlength=VOCABULARY) / len(texts)
        wanted = expected[:, place - 1].mean(0)
        np.testing.assert_array_less(np.abs(seen - wanted), 4 * np.sqrt(wanted / len(texts)) + 1e-3)
    # and as surprising as they should be, token by token
    given_tokens = np.take_along_axis(expected[:, :-1], texts[:, 1:, None], -1)[..., 0]
    entropy = -(expected[:, :-1] * np.log(expected[:, :-1])).sum(-1).mean()
    assert abs(-np.log(given_tokens).mean() - entropy) < 0.04


@pytest.mark.parametrize("inputs", CACHES.values(), ids=CACHES)
def test_the_seed_decides(inputs: dict[str, Any]) -> None:
    model = language_model(**inputs)
    first, again, other = (sampled(model, count=3, length=12, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_texts_longer_than_the_context_that_a_step_looks_back() -> None:
    texts = sampled(language_model(positions=False), count=2, length=150)
    assert texts.shape == (2, 150)
    assert len(np.unique(texts[:, 80:])) > VOCABULARY // 2


@pytest.mark.parametrize("mask", [True, False])
def test_fixed_sizes(mask: bool) -> None:
    assert sampled(language_model("2, 16", mask=mask), count=5, length=16).shape == (5, 16)


def test_a_fixed_batch_with_a_cache() -> None:
    assert sampled(language_model("2, length", cache=True), count=5, length=9).shape == (5, 9)


def test_without_a_first_token_texts_begin_anywhere() -> None:
    texts = sampled(language_model(), count=50, length=2, first_token=None)
    assert len(np.unique(texts[:, 0])) > 5


def test_a_first_token_that_the_model_does_not_have() -> None:
    texts = sampled(language_model(), count=50, length=2, first_token=5000)
    assert len(np.unique(texts[:, 0])) > 5

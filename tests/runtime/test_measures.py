"""The measures against their definitions, and the merging of parts."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynorm_onnx.runtime import measures
from dynorm_onnx.runtime.measures import OutputSums, TokenQuality, TokenSums, WorstToken


def random_logits(seed: int, shape: tuple[int, ...] = (3, 7, 13)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(shape) * 3
    return logits, logits + 0.3 * rng.standard_normal(shape)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@given(st.integers(0, 10**6), st.floats(-1e4, 1e4))
@settings(max_examples=30, deadline=None)
def test_a_shift_of_all_logits_of_a_token_changes_nothing(seed: int, shift: float) -> None:
    before, after = random_logits(seed)
    ids = np.random.default_rng(seed).integers(0, 13, (3, 7))
    plain, shifted = TokenSums.of(before, after, None, ids), TokenSums.of(before + shift, after - shift, None, ids)
    for name in ("kl", "loss_original", "loss_converted"):
        np.testing.assert_allclose(getattr(shifted, name), getattr(plain, name), atol=1e-9)


def test_kl_agreement_and_loss_by_definition() -> None:
    before, after = random_logits(1)
    ids = np.random.default_rng(2).integers(0, 13, (3, 7))
    kept = np.ones((3, 7), bool)
    kept[1, 4:] = False
    quality = TokenSums.of(before, after, kept, ids).quality()
    p, q = softmax(before), softmax(after)
    kl = (p * np.log(p / q)).sum(-1)
    assert quality is not None
    assert quality.tokens == 18
    assert quality.kl_mean == pytest.approx(kl[kept].mean())
    assert quality.kl_median == pytest.approx(np.quantile(kl[kept], 0.5, method="higher"))
    assert quality.kl_p99 == pytest.approx(np.quantile(kl[kept], 0.99, method="higher"))
    assert quality.worst.kl == pytest.approx(kl[kept].max())
    assert kl[quality.worst.sample, quality.worst.position] == pytest.approx(quality.worst.kl)
    assert quality.top1_agreement == (p.argmax(-1) == q.argmax(-1))[kept].mean()
    pairs = kept[:, :-1] & kept[:, 1:]
    chosen = np.take_along_axis(p[:, :-1], ids[:, 1:, None], -1)[..., 0]
    assert quality.loss_original == pytest.approx(-np.log(chosen)[pairs].mean())


def test_first_tokens_and_the_others_make_up_the_whole() -> None:
    before, after = random_logits(5)
    ids = np.random.default_rng(2).integers(0, 13, (3, 7))
    kept = np.ones((3, 7), bool)
    kept[1, :2] = False  # padded on the left: its third token is the first
    kept[2, 1:] = False  # a single token is first of nothing
    quality = TokenSums.of(before, after, kept, ids).quality()
    p, q = softmax(before), softmax(after)
    kl = (p * np.log(p / q)).sum(-1)
    assert quality is not None and quality.first is not None and quality.others is not None
    assert (quality.first.tokens, quality.others.tokens) == (2, quality.tokens - 2)
    assert quality.first.kl_mean == pytest.approx((kl[0, 0] + kl[1, 2]) / 2)
    assert quality.first.loss_original == pytest.approx(-(np.log(p[0, 0, ids[0, 1]]) + np.log(p[1, 2, ids[1, 3]])) / 2)
    parts = (quality.first, quality.others)
    assert sum(part.tokens * part.kl_mean for part in parts) == pytest.approx(quality.tokens * quality.kl_mean)
    assert sum(part.tokens * part.top1_agreement for part in parts) == quality.tokens * quality.top1_agreement


def test_a_row_of_one_prediction_has_no_first_token() -> None:
    before, after = random_logits(6, (4, 11))
    quality = TokenSums.of(before, after, None, None).quality()
    assert quality is not None and quality.first is None and quality.others is None


@given(st.integers(0, 10**6), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_merging_parts_equals_the_whole(seed: int, cut: int) -> None:
    before, after = random_logits(seed, (4, 5, 11))
    ids = np.random.default_rng(seed).integers(0, 11, (4, 5))
    kept = np.random.default_rng(seed + 1).random((4, 5)) > 0.2
    parts = [slice(0, cut), slice(cut, 4)]
    whole, joined = OutputSums.of(before, after, kept), None
    for part in parts:
        sums = OutputSums.of(before[part], after[part], kept[part])
        joined = sums if joined is None else joined.merge(sums)
    assert joined is not None
    np.testing.assert_allclose(joined.difference, whole.difference)
    np.testing.assert_allclose(joined.cosines, whole.cosines)
    assert joined.absolute == pytest.approx(whole.absolute) and joined.values == whole.values
    tokens = [TokenSums.of(before[p], after[p], kept[p], ids[p]) for p in parts]
    assert tokens[0].merge(tokens[1]).quality() == TokenSums.of(before, after, kept, ids).quality()


def test_blocks_do_not_change_the_result(monkeypatch) -> None:
    before, after = random_logits(3)
    ids = np.zeros((3, 7), np.int64)
    tokens, output = (
        TokenSums.of(before, after, None, ids).quality(),
        OutputSums.of(before, after, None).error(),
    )
    monkeypatch.setattr(measures, "_BLOCK", 20)
    assert TokenSums.of(before, after, None, ids).quality() == tokens
    blocked = OutputSums.of(before, after, None).error()
    assert blocked.relative_error == pytest.approx(output.relative_error)
    assert blocked.cosine == pytest.approx(output.cosine)


def test_relative_error_and_cosine_by_definition() -> None:
    a, b = random_logits(4)
    error = OutputSums.of(a, b, None).error()
    assert error.relative_error == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a))
    assert error.absolute_error == pytest.approx(np.abs(b - a).mean())
    assert error.cosine is not None and error.cosine_min is not None
    cosines = [float(x.ravel() @ y.ravel() / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in zip(a, b, strict=True)]
    assert error.cosine == pytest.approx(np.mean(cosines))
    assert error.cosine_min == pytest.approx(np.min(cosines))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("shape", [(), (5,), (5, 3), (5, 8)])
def test_equal_outputs_have_no_error(dtype, shape) -> None:
    a = np.ones(shape, dtype)
    error = OutputSums.of(a, a.copy(), None).error()
    assert (error.relative_error, error.absolute_error) == (0, 0)
    assert (error.cosine, error.cosine_min) == ((1, 1) if shape == (5, 8) else (None, None))
    zero = OutputSums.of(np.zeros((2, 8), dtype), np.zeros((2, 8), dtype), None).error()
    assert (zero.relative_error, zero.cosine) == (0, 1)


def test_infinities_of_the_original_are_left_out_and_new_ones_are_not() -> None:
    a = np.array([[1.0, -np.inf, 2.0, *[1.0] * 5]])
    assert OutputSums.of(a, a, None).error().relative_error == 0
    for bad in (np.nan, np.inf):
        error = OutputSums.of(a, np.array([[1.0, -np.inf, bad, *[1.0] * 5]]), None).error()
        assert math.isinf(error.relative_error) and math.isinf(error.absolute_error)
        assert error.cosine == 0


def test_logits_of_minus_infinity() -> None:
    before = np.array([[[0.0, 1.0, -np.inf]]])
    same = TokenSums.of(before, before, None, None).quality()
    assert same is not None
    assert same.kl_mean == 0
    lost = TokenSums.of(before, np.array([[[0.0, -np.inf, 1.0]]]), None, None).quality()
    assert lost is not None
    assert math.isinf(lost.kl_mean)
    broken = TokenSums.of(before, np.array([[[0.0, np.nan, 1.0]]]), None, None).quality()
    assert broken is not None
    assert math.isinf(broken.kl_mean)
    assert not broken.top1_agreement


@pytest.mark.parametrize(
    ("worst", "p99", "out"), [(0.9, 0.01, False), (5.0, 0.6, False), (7.0, 0.6, True), (1.1, 0.1, True)]
)
def test_what_is_out_of_proportion(worst: float, p99: float, out: bool) -> None:
    quality = TokenQuality(1000, 0.01, 0.01, p99, WorstToken(0, 0, worst), 1.0, None, None, ())
    assert quality.worst_out_of_proportion is out

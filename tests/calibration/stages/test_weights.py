"""How much tokens count: padding nothing, early tokens of a causal model more."""

from __future__ import annotations

import numpy as np

from dynorm_onnx.calibration.stages.weights import row_weights, token_weights, weights_of_batches
from dynorm_onnx.graph.files import model_io
from tests.shipped import MODEL


def test_padding_counts_nothing() -> None:
    feeds = {"input_ids": np.zeros((2, 3), np.int64), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])}
    np.testing.assert_array_equal(token_weights(feeds, "input_ids", causal=False), [[1, 1, 1], [1, 1, 0]])


def test_a_cache_comes_before_the_tokens_in_the_mask() -> None:
    feeds = {"input_ids": np.zeros((1, 2), np.int64), "attention_mask": np.array([[0, 1, 1, 1, 0]])}
    np.testing.assert_array_equal(token_weights(feeds, "input_ids", causal=False), [[1, 0]])


def test_a_causal_token_counts_about_what_even_attention_gives_it() -> None:
    length = 200
    weights = token_weights({"input_ids": np.zeros((1, length), np.int64)}, "input_ids", causal=True)
    received = np.array([sum(1 / (t + 1) for t in range(i, length)) for i in range(length)])
    assert weights is not None and weights.shape == (1, length)
    assert np.all(np.diff(weights[0]) < 0)
    later = slice(5, None)  # the formula is the integral; it leaves the sum only at the very first tokens
    assert np.max(np.abs(weights[0, later] - 1 - received[later])) < 0.2


def test_rows_are_found_in_every_layout_of_tokens() -> None:
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    flat = weights.reshape(-1)
    np.testing.assert_array_equal(row_weights(weights, np.zeros((2, 3, 8))), flat)
    np.testing.assert_array_equal(row_weights(weights, np.zeros((6, 8))), flat)
    heads_last = row_weights(weights, np.zeros((2, 3, 4, 8))).reshape(2, 3, 4)
    heads_first = row_weights(weights, np.zeros((2, 4, 3, 8))).reshape(2, 4, 3)
    for head in range(4):
        np.testing.assert_array_equal(heads_last[:, :, head], weights)
        np.testing.assert_array_equal(heads_first[:, head], weights)
    np.testing.assert_array_equal(row_weights(weights, np.zeros((5, 8))), np.ones(5))
    np.testing.assert_array_equal(row_weights(None, np.zeros((2, 3, 8))), np.ones(6))


def test_the_shipped_model_is_found_to_be_causal() -> None:
    feeds = {"input_ids": np.random.default_rng(0).integers(0, 256, (2, 12))}
    (weights,) = weights_of_batches(model_io.prepare(model_io.load(MODEL)), [feeds])
    assert weights is not None and weights[0, 0] > 2 * weights[0, -1]

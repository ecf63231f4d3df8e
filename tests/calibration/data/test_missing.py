"""Arrays that fit their inputs or do not, and the inputs that nobody gives."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from dynorm_onnx.calibration.data import InputSpec, ModelSignature, signature
from dynorm_onnx.calibration.data.fitting import fitted
from dynorm_onnx.calibration.data.missing import complete
from dynorm_onnx.calibration.data.signature import Dim
from dynorm_onnx.errors import DataError
from dynorm_onnx.runtime.arrays import Feeds, run
from dynorm_onnx.runtime.session import make_session
from tests.calibration.data.test_signature import parsed
from tests.calibration.tiny_models import VOCABULARY, language_model

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def made(feeds: Feeds, model: ModelSignature) -> Feeds:
    return complete(feeds, model, np.random.default_rng(0))


def taking(declaration: str) -> ModelSignature:
    """The signature of a model with these inputs, as ONNX text, and input_ids."""
    text = f"(int64[batch, length] input_ids, {declaration}) => (int64[batch, length] y) {{ y = Identity(input_ids) }}"
    return signature(parsed(text))


def spec(dtype: type | np.dtype, *shape: Dim, bound: int | None = None) -> InputSpec:
    return InputSpec("x", np.dtype(dtype), shape, "other", bound)


IDS = np.arange(6).reshape(2, 3)


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        (np.int32, np.array([[1, 2]], np.int64)),
        (np.int64, np.array([[1, 2]], np.uint8)),
        (np.bool_, np.array([[0, 1]], np.int64)),
        (np.int64, np.array([[True, False]])),
        (np.float32, np.array([[0.1, np.inf]])),
        (np.float16, np.array([[0.1, 60000.0]])),
        (BFLOAT16, np.array([[0.1, 1e38]], np.float32)),
    ],
)
def test_casts_that_keep_what_matters(dtype: type, array: np.ndarray) -> None:
    cast = fitted(spec(dtype, "n", 2), array)
    assert cast.dtype == dtype
    np.testing.assert_allclose(cast.astype(np.float64), array.astype(np.float64), rtol=8e-3)


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        (np.int32, np.array([[1, 2**40]])),
        (np.int64, np.array([[1.0, 2.0]])),
        (np.float32, np.array([[1, 2]])),
        (np.float16, np.array([[1.0, 1e6]])),
        (np.bool_, np.array([[0, 2]])),
        (np.float32, np.array([["a", "b"]])),
    ],
)
def test_casts_that_lose(dtype: type, array: np.ndarray) -> None:
    given = "string" if array.dtype.kind == "U" else array.dtype
    with pytest.raises(DataError, match=rf"'x' must be {np.dtype(dtype)} \[n, 2\]; the data has {given} \[1, 2\]"):
        fitted(spec(dtype, "n", 2), array)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 1), (1, 3)])
def test_wrong_rank_or_fixed_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"'x' must be float32 \[n, 2\]; the data has float32 \["):
        fitted(spec(np.float32, "n", 2), np.zeros(shape, np.float32))


@pytest.mark.parametrize("token", [-100, 23])
def test_index_outside_its_table(token: int) -> None:
    with pytest.raises(DataError, match=rf"'x' indexes a table of 23 rows.*0\.\.22; the data holds {token}"):
        fitted(spec(np.int64, "n", bound=23), np.array([1, token]))


def test_unknown_name() -> None:
    with pytest.raises(DataError, match="'labels', but the model's inputs are input_ids, attention_mask, position_ids"):
        made({"input_ids": IDS, "labels": IDS}, signature(language_model()))


def test_missing_and_unknown() -> None:
    with pytest.raises(DataError, match=r"no 'pixel_values', which the model takes as float32 \[batch, 3, 4, 4\]"):
        text = "(int64[batch, length] input_ids, float[batch, 3, 4, 4] pixel_values) => (float[batch, 3, 4, 4] y)"
        made({"input_ids": IDS}, signature(parsed(text + "{ y = Relu(pixel_values) }")))


def test_missing_and_of_a_size_that_cannot_be_made() -> None:
    with pytest.raises(DataError, match=r"no 'position_ids', and none could be made: .* must be int64 \[batch, 9\]"):
        made({"input_ids": IDS}, taking("int64[batch, 9] position_ids"))


def test_everything_around_the_tokens_of_a_decoder() -> None:
    model = language_model(cache=True)
    feeds = made({"input_ids": IDS}, signature(model))
    np.testing.assert_array_equal(feeds["attention_mask"], np.ones((2, 3)))
    np.testing.assert_array_equal(feeds["position_ids"], [[0, 1, 2]] * 2)
    assert feeds["past_key_values.0.key"].shape == (2, 0, 8)
    assert run(make_session(model), feeds)["logits"].shape == (2, 3, VOCABULARY)


def test_the_mask_covers_the_past_and_positions_go_on_from_it() -> None:
    past = np.zeros((2, 5, 8), np.float32)
    given: Feeds = {"input_ids": IDS, "past_key_values.0.key": past, "past_key_values.0.value": past}
    feeds = made(given, signature(language_model(cache=True)))
    assert feeds["attention_mask"].shape == (2, 8)
    np.testing.assert_array_equal(feeds["position_ids"], [[5, 6, 7]] * 2)


def test_positions_count_what_the_mask_shows() -> None:
    mask = np.array([[0, 1, 1], [1, 1, 0]])
    feeds = made({"input_ids": IDS, "attention_mask": mask}, signature(language_model()))
    np.testing.assert_array_equal(feeds["position_ids"], [[0, 0, 1], [0, 1, 1]])


@pytest.mark.parametrize(
    ("declaration", "expected"),
    [
        ("int64[batch, length] token_type_ids", np.zeros((2, 3))),
        ("int32[batch] seqlens_k", [2, 2]),
        ("int32 total_sequence_length", 3),
        ("int32[1] past_seq_len", [0]),
        ("int64[length] cache_position", [0, 1, 2]),
        ("int64[3, batch, length] position_ids", [[[0, 1, 2]] * 2] * 3),
        ("bool[1] use_cache_branch", [False]),
        ("int64 num_logits_to_keep", 0),
        ("float[batch, 16, 4] past_conv", np.zeros((2, 16, 4))),
        ("float16[2, batch, 4, past, 8] past_0", np.zeros((2, 2, 4, 0, 8))),
        ("int64[batch, length] decoder_input_ids", IDS),
        ("float[batch, 1, length, total] attention_mask", np.zeros((2, 1, 3, 3))),
        ("bool[batch, 1, 1, total] attention_mask", np.ones((2, 1, 1, 3))),
        ("int64[batch, 8] attention_mask", [[0, 0, 0, 0, 0, 1, 1, 1]] * 2),
    ],
)
def test_made_by_its_role(declaration: str, expected: np.ndarray) -> None:
    model = taking(declaration)
    feeds = made({"input_ids": IDS}, model)
    found = model.inputs[1]
    assert feeds[found.name].dtype == found.dtype
    np.testing.assert_array_equal(feeds[found.name], expected)


def test_a_causal_mask_of_scores() -> None:
    model = signature(
        parsed(
            """(int64[batch, length] input_ids, float[batch, 1, length, total] attention_mask)
            => (float[batch, length, 9] logits) { logits = Gather(words, input_ids) }""",
            words=(9, 9),
        )
    )
    mask = made({"input_ids": IDS}, model)["attention_mask"]
    np.testing.assert_array_equal(mask[0, 0] < 0, [[False, True, True], [False, False, True], [False, False, False]])


def test_encoder_states_are_drawn_and_their_mask_fits() -> None:
    model = taking("float[batch, source, 16] encoder_hidden_states, int64[batch, source] encoder_attention_mask")
    feeds = made({"input_ids": IDS}, model)
    assert feeds["encoder_hidden_states"].shape == (2, 3, 16)
    assert 0.5 < feeds["encoder_hidden_states"].std() < 1.5
    np.testing.assert_array_equal(feeds["encoder_attention_mask"], np.ones((2, 3)))


def test_a_cache_of_unknown_size() -> None:
    with pytest.raises(DataError, match=r"no 'past_0', and float32 \[batch, heads, past, 8\] leaves its size open"):
        made({"input_ids": IDS}, taking("float[batch, heads, past, 8] past_0"))

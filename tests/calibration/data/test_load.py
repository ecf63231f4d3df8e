"""Calibration data from every source, complete for the model and run through it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from dynorm_onnx.calibration.data import CalibrationData, load_calibration
from dynorm_onnx.errors import DataError, UsageError
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import make_session
from tests.calibration.data.test_signature import parsed
from tests.calibration.data.test_text import write_tokenizer
from tests.calibration.tiny_models import VOCABULARY, grouped_query_model, language_model


def load(model: ir.Model, data: Any = None, **knobs: Any) -> CalibrationData:
    """load_calibration() with defaults; every batch that comes is run."""
    session = make_session(model, threads=1)
    loaded = load_calibration(
        model, data, session=lambda: session, **({"samples": 10, "max_length": 12, "seed": 0} | knobs)
    )
    for feeds in (*loaded.calibration, *loaded.validation):
        run(session, feeds)
    return loaded


def token_rows(batches: tuple[dict[str, np.ndarray], ...]) -> list[tuple[int, ...]]:
    return [tuple(row.tolist()) for feeds in batches for row in feeds["input_ids"]]


def text_file(folder: Path, words: int = 2000) -> Path:
    write_tokenizer(folder)
    path = folder / "text.txt"
    path.write_text(" ".join(f"w{index}" for index in np.random.default_rng(0).integers(0, 20, words)))
    return path


def test_text_with_the_tokenizer_beside_the_model(tmp_path: Path) -> None:
    loaded = load(language_model(), text_file(tmp_path), folder=tmp_path)
    assert (loaded.source, loaded.samples, loaded.tokens) == ("text text.txt", 10, 120)
    assert loaded.vocabulary == VOCABULARY
    assert loaded.warnings == ()
    rows = token_rows(loaded.calibration)
    assert all(row[0] == 0 and row[-1] == 1 for row in rows)
    assert not set(rows) & set(token_rows(loaded.validation))


def test_text_with_a_tokenizer_given(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    assert load(language_model(), str(text), tokenizer=tmp_path / "tokenizer.json").samples == 10


def test_text_for_a_model_of_fixed_sizes(tmp_path: Path) -> None:
    loaded = load(language_model("4, 8"), text_file(tmp_path), folder=tmp_path)
    assert {feeds["input_ids"].shape for feeds in loaded.calibration} == {(4, 8)}
    assert loaded.samples == 8


def write_jsonl(folder: Path, lengths: list[int]) -> Path:
    path = folder / "samples.jsonl"
    ids = np.random.default_rng(0)
    path.write_text("".join(json.dumps({"input_ids": ids.integers(0, 20, n).tolist()}) + "\n" for n in lengths))
    return path


LENGTHS = [3, 5, 5, 9, 3, 5, 12, 9, 3, 5, 40, 7]


def test_samples_of_different_lengths_are_not_padded_but_grouped(tmp_path: Path) -> None:
    loaded = load(language_model(), write_jsonl(tmp_path, LENGTHS), samples=20)
    assert all(feeds["attention_mask"].all() for feeds in loaded.calibration)
    assert len({feeds["input_ids"].shape for feeds in loaded.calibration}) == len(loaded.calibration)


@pytest.mark.parametrize("shape", ["batch, 12", "3, 12", "3, length"])
def test_samples_are_padded_where_a_size_is_fixed(tmp_path: Path, shape: str) -> None:
    loaded = load(language_model(shape), write_jsonl(tmp_path, LENGTHS), samples=20)
    masks = [feeds["attention_mask"] for feeds in loaded.calibration]
    assert loaded.tokens == sum(mask.sum() for mask in masks) < sum(mask.size for mask in masks)
    assert all((np.diff(mask, axis=1) <= 0).all() for mask in masks)
    for feeds in loaded.calibration:
        assert not feeds["input_ids"][feeds["attention_mask"] == 0].any()


def test_samples_are_joined_where_a_length_is_fixed_and_there_is_no_mask(tmp_path: Path) -> None:
    loaded = load(language_model("batch, 12", mask=False), write_jsonl(tmp_path, LENGTHS), samples=20)
    assert {feeds["input_ids"].shape[1] for feeds in loaded.calibration} == {12}
    assert loaded.tokens % 12 == 0 and loaded.tokens > 0


def test_fewer_tokens_than_a_fixed_length(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="takes exactly 12 tokens and no mask; the data has 4"):
        load(language_model("batch, 12", mask=False), write_jsonl(tmp_path, [2, 2, 2]))


def test_a_fixed_batch_without_a_mask(tmp_path: Path) -> None:
    loaded = load(language_model("3, length", mask=False), write_jsonl(tmp_path, [5] * 10 + [4] * 2), samples=20)
    assert {feeds["input_ids"].shape for feeds in loaded.calibration} <= {(3, 5), (3, 4)}


def test_npz(tmp_path: Path) -> None:
    ids = np.arange(120).reshape(20, 6) % VOCABULARY
    np.savez(tmp_path / "a.npz", input_ids=ids.astype(np.int32))
    loaded = load(language_model(cache=True), tmp_path / "a.npz")
    assert (loaded.source, loaded.samples, loaded.tokens) == ("arrays a.npz", 10, 60)
    assert len(loaded.validation[0]["input_ids"]) == 2


def test_folder(tmp_path: Path) -> None:
    for index in range(5):
        np.savez(tmp_path / f"{index}.npz", input_ids=np.full((2, 6), index))
    assert load(language_model(), tmp_path).samples == 8


def test_iterable() -> None:
    loaded = load(language_model(), ({"input_ids": np.full((2, 6), index)} for index in range(6)))
    assert loaded.source == "samples given in Python"
    assert loaded.samples == 10


def test_arrays_by_name() -> None:
    assert load(language_model(), {"input_ids": np.zeros((12, 6), np.int64)}).samples == 10


def test_a_single_sample_is_said(tmp_path: Path) -> None:
    loaded = load(language_model(), [{"input_ids": np.zeros((1, 4), np.int64)}])
    assert "single sample" in loaded.warnings[0]
    assert len(loaded.validation) == 1


@pytest.mark.parametrize("cache", [True, False])
def test_a_causal_model_writes_its_own_text(cache: bool) -> None:
    seen: list[tuple[int, int]] = []
    loaded = load(language_model(cache=cache), progress=lambda done, total: seen.append((done, total)))
    assert (loaded.source, loaded.samples, loaded.tokens) == ("text that the model wrote", 10, 120)
    assert loaded.warnings == ()
    assert seen[-1] == (144, 144)
    assert not set(token_rows(loaded.calibration)) & set(token_rows(loaded.validation))


def test_its_text_begins_as_the_settings_beside_it_say(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 7, "max_position_embeddings": 9}))
    loaded = load(language_model(), folder=tmp_path)
    assert {(len(row), row[0]) for row in token_rows(loaded.calibration)} == {(9, 7)}


def test_its_text_begins_as_its_tokenizer_says(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert {row[0] for row in token_rows(load(language_model(), folder=tmp_path).calibration)} == {0}


def test_settings_that_cannot_be_read_are_left_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert load(language_model(), folder=tmp_path).samples == 10
    assert "config.json is left aside" in caplog.text


def test_a_masked_language_model_gets_random_tokens() -> None:
    with pytest.raises(DataError, match=r"--data \(input_ids: int64 \[.*--data random"):
        load(language_model(causal=False))
    loaded = load(language_model(causal=False), "random")
    assert loaded.source == load(language_model(causal=False), drawn=True).source == "random inputs"
    assert "--data" in loaded.warnings[0]
    tokens = np.concatenate([feeds["input_ids"].ravel() for feeds in loaded.calibration])
    assert tokens.min() >= 0 and tokens.max() < VOCABULARY and len(np.unique(tokens)) > VOCABULARY // 2


def test_images_are_drawn_smooth() -> None:
    model = parsed(
        "(float16[batch, channels, height, width] pixel_values) => (float16[b, c, h, w] y) { y = Relu(pixel_values) }"
    )
    image = load(model, "random", samples=2).calibration[0]["pixel_values"].astype(np.float64)
    assert image.shape == (2, 3, 224, 224)
    assert abs(image.std() - 1) < 0.1
    assert np.abs(np.diff(image)).mean() < 0.6  # 1.13 for white noise


def test_other_inputs_are_drawn_from_the_signature() -> None:
    model = parsed(
        """(float[batch, seq, 8] states, bool[batch, seq] keep, int64[batch] kind, float[8] scale)
        => (float[batch, seq, 8] y) { y = Mul(states, scale) }"""
    )
    feeds = load(model, "random", samples=4).calibration[0]
    assert {name: array.shape for name, array in feeds.items()} == {
        "states": (4, 12, 8),
        "keep": (4, 12),
        "kind": (4,),
        "scale": (8,),
    }


def test_the_longest_text_that_the_model_takes(tmp_path: Path) -> None:
    loaded = load(language_model(), text_file(tmp_path), folder=tmp_path, max_length=400, samples=2)
    assert loaded.calibration[0]["input_ids"].shape[1] == 48


def test_the_seed_decides(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [6] * 50)
    first, again, other = (token_rows(load(language_model(), path, seed=seed).calibration) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("knobs", [{"samples": 0}, {"max_length": 0}])
def test_knobs_that_make_no_sense(knobs: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"--samples and --max-length must be at least 1"):
        load(language_model(), **knobs)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt does not exist"):
        load(language_model(), tmp_path / "nowhere.txt")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(UsageError, match=r"data\.csv must be \.npz, \.jsonl, \.txt or a folder"):
        load(language_model(), tmp_path / "data.csv")


def test_text_for_a_model_without_tokens(tmp_path: Path) -> None:
    model = parsed("(float[batch, 3, 4, 4] pixel_values) => (float[batch, 3, 4, 4] y) { y = Relu(pixel_values) }")
    with pytest.raises(DataError, match="none of the model's inputs takes token ids: pixel_values"):
        load(model, text_file(tmp_path), folder=tmp_path)


def test_token_ids_beyond_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"input_ids": [1, 99]}\n')
    with pytest.raises(DataError, match=r"'input_ids' indexes a table of 23 rows.*the data holds 99"):
        load(language_model(), tmp_path / "a.jsonl")


def test_a_model_that_takes_lengths_in_the_place_of_a_mask() -> None:
    loaded = load(grouped_query_model())
    assert loaded.source == "text that the model wrote"
    feeds = loaded.calibration[0]
    assert feeds["past_key_values.0.key"].shape == (10, 1, 0, 8)
    np.testing.assert_array_equal(feeds["seqlens_k"], [11] * 10)
    assert feeds["total_sequence_length"] == 12


def test_decoder_tokens_are_drawn_where_the_encoder_reads_none() -> None:
    """Whisper's whole graph: sound goes in, and no token that the decoder's could be taken from."""
    text = """(float[batch, 4, 6] input_features, int64[batch, length] decoder_input_ids)
    => (float[batch, length, 3] y) {
        words_of = Gather(words, decoder_input_ids)
        heard = ReduceMean<keepdims = 0>(input_features)
        y = Add(words_of, heard)
    }"""
    loaded = load(parsed(text, words=(9, 3)), "random")
    tokens = np.concatenate([feeds["decoder_input_ids"] for feeds in loaded.calibration])
    assert tokens.shape == (10, 12) and tokens.min() >= 0 and tokens.max() < 9 and len(np.unique(tokens)) > 1


SHIPPED = Path(__file__).parents[3] / "models" / "byte_llama"


def test_the_shipped_model_on_the_text_beside_it() -> None:
    model = ir.load(SHIPPED / "byte_llama.onnx")
    loaded = load(model, SHIPPED / "held_out.txt", folder=SHIPPED, max_length=64)
    text = (SHIPPED / "held_out.txt").read_bytes()
    assert (loaded.vocabulary, loaded.tokens) == (256, 640)
    assert all(bytes(row) in text for row in token_rows(loaded.calibration))


def test_the_shipped_model_writes_text() -> None:
    loaded = load(ir.load(SHIPPED / "byte_llama.onnx"), folder=SHIPPED, samples=4, max_length=40)
    assert (loaded.source, loaded.tokens) == ("text that the model wrote", 160)

"""Windows of tokens from .txt and .jsonl files, and how samples are held out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from dynorm_onnx.calibration.data.text import TextEncoder, load_encoder, read_jsonl, read_txt
from dynorm_onnx.calibration.data.windows import divide, held_out, windows
from dynorm_onnx.errors import DataError, UsageError

WORDS = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2} | {f"w{index}": 3 + index for index in range(20)}


def write_tokenizer(folder: Path, template: str = "[CLS] $A [SEP]") -> Path:
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("[CLS]", 0), ("[SEP]", 1)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def encoder(tmp_path: Path) -> TextEncoder:
    return load_encoder(write_tokenizer(tmp_path), None)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@given(st.integers(0, 200), st.integers(1, 50))
def test_windows_are_contiguous_and_lose_nothing(size: int, length: int) -> None:
    ids = np.arange(size)
    cut = windows(ids, length)
    assert [len(part) for part in cut[:-1]] == [length] * (len(cut) - 1)
    assert all(0 < len(part) <= length for part in cut)
    np.testing.assert_array_equal(np.concatenate([*cut, ids[:0]]), ids)


@given(st.integers(2, 300), st.integers(1, 100))
def test_divided_samples_are_disjoint_and_the_tail_is_held_out(count: int, samples: int) -> None:
    front, tail = divide(range(count), samples)
    assert 1 <= len(front) <= samples
    assert 1 <= len(tail) <= held_out(samples)
    assert max(front) < min(tail)
    assert front == sorted(set(front)) and tail == sorted(set(tail))


@given(st.integers(1, 5000))
def test_as_many_as_are_asked_for(samples: int) -> None:
    front, tail = divide(range(samples + held_out(samples)), samples)
    assert (len(front), len(tail)) == (samples, held_out(samples))


def test_a_single_sample_is_both() -> None:
    assert divide(["only"], 8) == (["only"], ["only"])


def test_special_tokens_go_around_every_window(encoder: TextEncoder) -> None:
    rows = encoder.windows("w0 w1 w2 w3 w4", 4)
    assert [row.tolist() for row in rows] == [[0, 3, 4, 1], [0, 5, 6, 1], [0, 7, 1]]


def test_a_tokenizer_that_only_begins(tmp_path: Path) -> None:
    only = load_encoder(write_tokenizer(tmp_path, "[CLS] $A"), None)
    assert (only.prefix, only.suffix) == ((0,), ())


def test_no_room_between_special_tokens(encoder: TextEncoder) -> None:
    with pytest.raises(UsageError, match="--max-length 2 leaves no room: the tokenizer puts 2 special tokens"):
        encoder.windows("w0", 2)


def test_txt_in_its_order_without_the_short_rest(tmp_path: Path, encoder: TextEncoder) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{index}" for index in range(9)))
    rows = read_txt(text, encoder, wanted=10, length=6)
    assert [row.tolist() for row in rows] == [[0, 3, 4, 5, 6, 1], [0, 7, 8, 9, 10, 1]]


def test_a_large_txt_is_read_in_passages_over_all_of_it(tmp_path: Path, encoder: TextEncoder) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"w{index // 1000} é w{index // 1000}\n" for index in range(20000)), encoding="utf-8")
    rows = read_txt(text, encoder, wanted=64, length=32)
    assert len(rows) >= 64
    assert len(rows) * 32 < 20000
    assert {int(row[1]) for row in rows} >= set(range(3, 23))


@pytest.mark.parametrize(("content", "said"), [(b"", "holds no text"), (b"\xff\xfe\x00", "is not UTF-8 text")])
def test_bad_txt(tmp_path: Path, encoder: TextEncoder, content: bytes, said: str) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    with pytest.raises(DataError, match=rf"text\.txt {said}"):
        read_txt(text, encoder, wanted=4, length=8)


def test_jsonl_with_text_and_with_ids(tmp_path: Path, encoder: TextEncoder) -> None:
    samples = tmp_path / "samples.jsonl"
    lines = [{"text": "w0 w1", "label": 3}, {"input_ids": [5, 6, 7, 8, 9]}]
    samples.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    rows = read_jsonl(samples, lambda: encoder, wanted=10, length=4, rng=rng())
    assert sorted(row.tolist() for row in rows) == [[0, 3, 4, 1], [5, 6, 7, 8], [9]]


def test_jsonl_of_ids_needs_no_tokenizer(tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text('{"input_ids": [5, 6]}\n' * 40)
    rows = read_jsonl(samples, lambda: load_encoder(None, tmp_path), wanted=10, length=4, rng=rng())
    assert len(rows) == 10


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": ', "line 2 is not JSON"),
        (b'\xff{"text": "w1"}', "line 2 is not JSON"),
        (b'["w1"]', 'line 2 must be an object with "text" or with "input_ids"'),
        (b'{"prompt": "w1"}', 'line 2 must be an object with "text" or with "input_ids"'),
        (b'{"input_ids": [1, 2.5]}', 'line 2 must be an object with "text" or with "input_ids"'),
        (b'{"input_ids": "1 2"}', 'line 2 must be an object with "text" or with "input_ids"'),
        (b'{"input_ids": [1, 99999999999999999999]}', 'line 2 must be an object with "text" or with "input_ids"'),
    ],
)
def test_bad_jsonl_line(tmp_path: Path, encoder: TextEncoder, line: bytes, said: str) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_bytes(b'{"text": "w1"}\n' + line)
    with pytest.raises(DataError, match=rf"samples\.jsonl, {said}"):
        read_jsonl(samples, lambda: encoder, wanted=10, length=8, rng=rng())


def test_empty_jsonl(tmp_path: Path, encoder: TextEncoder) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text("\n\n")
    with pytest.raises(DataError, match=r"samples\.jsonl holds no samples"):
        read_jsonl(samples, lambda: encoder, wanted=10, length=8, rng=rng())


@pytest.mark.parametrize("folder", [None, Path("nowhere")])
def test_no_tokenizer(folder: Path | None) -> None:
    with pytest.raises(UsageError, match=r"text needs the model's tokenizer .*--tokenizer"):
        load_encoder(None, folder)


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer\.json"):
        load_encoder(None, tmp_path)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"pip install 'dynorm-onnx\[text\]'"):
        load_encoder(path, None)

"""Measures of a converted language model, against values computed by hand."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the extra `text`: pip install dynorm-onnx[text]")

from rich.console import Console
from tokenizers import Tokenizer, models, processors

from models.smollm2 import evaluate, tables
from models.smollm2.continuations import continued, greedy, in_common, prompts
from models.smollm2.evaluate import Text, Tokens, compared, measures, spread

WORDS = ("a", "b", "c")


class Session:
    """A model of three words whose logits depend on the last word alone: rows of log probabilities."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = np.log(np.array(rows, np.float32))

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="input_ids")]

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert names == ["logits"] and set(feeds) == {"input_ids"}
        return [self.rows[feeds["input_ids"]]]


ORIGINAL = Session([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0.25, 0.5, 0.25]])
CONVERTED = Session([[0.25, 0.5, 0.25], [0.25, 0.25, 0.5], [0.25, 0.5, 0.25]])  # wrong behind "a"
KL_BEHIND_A = 0.5 * math.log(2) + 0.25 * math.log(0.5)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(models.BPE({word: place for place, word in enumerate(WORDS)}, []))


def test_windows_are_spread_over_the_text_and_do_not_overlap() -> None:
    np.testing.assert_array_equal(spread(np.arange(10), 2, 3), [[0, 1, 2], [7, 8, 9]])
    windows = spread(np.arange(1000), 7, 100)
    assert windows[0, 0] == 0 and windows[-1, -1] == 999
    assert len(np.unique(windows)) == windows.size


def test_a_text_that_is_too_short_is_told() -> None:
    with pytest.raises(ValueError, match="3 windows of 4 tokens need 12; the text has 11"):
        spread(np.arange(11), 3, 4)


def test_measures_by_hand() -> None:
    (tokens,) = compared(ORIGINAL, [CONVERTED], np.array([[0, 1, 0, 2]]))
    np.testing.assert_allclose(tokens.kl, [KL_BEHIND_A, 0, KL_BEHIND_A, 0], atol=1e-7)
    np.testing.assert_array_equal(tokens.agree, [False, True, False, True])
    np.testing.assert_allclose(tokens.before, [math.log(4), math.log(4), math.log(4), np.nan], rtol=1e-6)
    np.testing.assert_allclose(tokens.after, [math.log(2), math.log(4), math.log(4), np.nan], rtol=1e-6)
    np.testing.assert_array_equal(tokens.position, [0, 1, 2, 3])
    found = tokens.summary()
    assert found["tokens"] == 4 and found["top1"] == 0.5
    assert found["loss_before"] == pytest.approx(math.log(4))
    assert found["loss_after"] == pytest.approx(math.log(2) * 5 / 3)
    assert found["kl_mean"] == pytest.approx(KL_BEHIND_A / 2)
    assert found["kl_p99"] == pytest.approx(KL_BEHIND_A)


def test_measures_by_position_and_kind(tokenizer: Tokenizer) -> None:
    texts = [Text("first", np.array([[1] * 10, [0] + [1] * 9])), Text("second", np.array([[2] * 10, [2] * 9 + [0]]))]
    tokens = [compared(ORIGINAL, [CONVERTED], text.windows)[0] for text in texts]
    found = measures(texts, tokens, tokenizer)
    assert [row["tokens"] for row in found["positions"].values()] == [4, 28, 8]
    assert [row["top1"] for row in found["positions"].values()] == [0.75, 1, 0.875]
    assert [found["kinds"][kind]["top1"] for kind in ("first", "second")] == [0.95, 0.95]
    assert found["all"]["kl_mean"] == pytest.approx(2 * KL_BEHIND_A / 40, rel=1e-5)
    first, second, *_ = found["worst"]
    assert (first["kind"], first["window"], first["position"], first["text"]) == ("first", 1, 0, "a")
    assert (second["kind"], second["window"], second["position"]) == ("second", 1, 9)
    assert second["text"].replace(" ", "") == "c" * 9 + "a"


def test_greedy_continuations(tokenizer: Tokenizer) -> None:
    assert greedy(ORIGINAL, [1], 5, {None}) == [2, 1, 2, 1, 2]
    assert greedy(ORIGINAL, [1], 5, {None, 1}) == [2, 1]
    assert in_common([1, 2, 3], [1, 2, 4]) == 2 and in_common([1], [1, 2]) == 1
    found = continued({"original": ORIGINAL, "converted": CONVERTED}, tokenizer, "a", "a", 3)
    assert found.same == {"original": 3, "converted": 0}
    assert found.written["original"].replace(" ", "") == "aaa"


def test_a_chat_is_asked_in_the_form_that_the_tokenizer_knows(tokenizer: Tokenizer) -> None:
    plain = list(prompts(tokenizer))
    assert all(asked == prompt for asked, prompt in plain)
    tokenizer.add_special_tokens(["<start_of_turn>"])
    asked, prompt = list(prompts(tokenizer))[len(plain)]
    assert prompt == f"<start_of_turn>user\n{asked}<end_of_turn>\n<start_of_turn>model\n"


def test_the_tables_show_text_that_looks_like_markup(tokenizer: Tokenizer) -> None:
    texts = [Text("kind", np.zeros((2, 4), np.int64))]
    tokens = [Tokens.joined([*compared(ORIGINAL, [CONVERTED], texts[0].windows)])]
    file = measures(texts, tokens, tokenizer) | {"worst": [
        {"kind": "kind", "window": 0, "position": 1, "kl": 2.0, "text": "[bold]x[/]\ny"}
    ]}  # fmt: skip
    written = [{"asked": "[red]?", "prompt": "[red]?", "written": {"a": "[/x]"}, "same": {"a": 1}}]
    console = Console(width=120, record=True, file=io.StringIO())
    tables.show({"files": {"a.onnx": file}, "continuations": written}, console)
    shown = console.export_text()
    assert "[bold]x[/]⏎y" in shown and "[red]?" in shown and "[/x] [1]" in shown


def test_every_kind_of_text_is_read(tmp_path, tokenizer: Tokenizer) -> None:
    with pytest.raises(FileNotFoundError, match=r"models\.smollm2\.text"):
        evaluate.read_texts(tmp_path, tokenizer, 1, 2)
    for name in ("test_novel.txt", "test_code.txt", "training.txt"):
        (tmp_path / name).write_text("abcabc")
    texts = evaluate.read_texts(tmp_path, tokenizer, 2, 3)
    assert [text.kind for text in texts] == ["code", "novel"]
    np.testing.assert_array_equal(texts[0].windows, [[0, 1, 2], [0, 1, 2]])


def test_windows_begin_with_what_the_tokenizer_begins_a_text_with(tmp_path, tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(single="c $A", special_tokens=[("c", 2)])
    (tmp_path / "test_code.txt").write_text("ababab")
    (text,) = evaluate.read_texts(tmp_path, tokenizer, 2, 3)
    np.testing.assert_array_equal(text.windows, [[2, 0, 1], [2, 0, 1]])

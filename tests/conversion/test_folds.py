"""Folds within whole conversions: done by default where they are exact, reported, and left out on request."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from dynorm_onnx import convert_model
from dynorm_onnx.report import print_report
from dynorm_onnx.runtime.session import make_session
from tests.graph.fold.models import IDS, pre_norm
from tests.tolerances import TOLERANCE, relative_error

NORMS = 4
QUICK = {"samples": 6, "time": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(pre_norm(blocks=NORMS - 1), path)
    return path


def logits(path: Path) -> np.ndarray:
    return make_session(path).run(None, {"ids": IDS})[0]


def test_rmsnorm_makes_rms_norms_of_layer_norms(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    report = convert_model(model, to="rmsnorm", output=output, **QUICK)
    names = [node.op_type for node in onnx.load(output).graph.node]
    assert names.count("SimplifiedLayerNormalization") == NORMS and "LayerNormalization" not in names
    assert relative_error(logits(output), logits(model)) < TOLERANCE["float32"]
    folds = report.as_dict()["folds"]
    assert folds["left"] == [] and folds["relative_error"] < TOLERANCE["float32"]
    (fold,) = folds["done"]
    assert fold["kind"] == "centring" and len(fold["sites"]) == NORMS
    assert set(fold["into"]) <= set(report.changed_initializers)
    text = io.StringIO()
    print_report(report, Console(file=text, width=200))
    assert f"folds: {NORMS} centrings into the weights upstream" in text.getvalue()


def test_no_fold(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    report = convert_model(model, to="rmsnorm", output=output, fold=False, **QUICK)
    assert [node.op_type for node in onnx.load(output).graph.node].count("LayerNormalization") == NORMS
    assert not report.folds.done and not report.changed_initializers


@pytest.mark.parametrize("method", ["fit", "reconstruct"])
def test_what_a_function_replaces_reads_a_centred_stream(model: Path, tmp_path: Path, method: str) -> None:
    report = convert_model(model, output=tmp_path / "out.onnx", method=method, **QUICK)
    assert [len(fold.sites) for fold in report.folds.done] == [NORMS]
    assert {"words", "places"} <= set(report.changed_initializers)


def test_weights_are_folded_on_request(model: Path, tmp_path: Path) -> None:
    folded, plain = tmp_path / "folded.onnx", tmp_path / "plain.onnx"
    report = convert_model(model, output=folded, method="fit", fold_weights=True, **QUICK)
    convert_model(model, output=plain, method="fit", **QUICK)
    assert [fold.kind for fold in report.folds.done] == ["centring"] + ["weight"] * NORMS
    assert relative_error(logits(folded), logits(plain)) < TOLERANCE["float32"]
    weights = [t for t in onnx.load(folded).graph.initializer if t.name.endswith("dyisru.weight")]
    assert len(weights) == NORMS and all(np.all(onnx.numpy_helper.to_array(t) == 1) for t in weights)


def test_kept_norms_do_not_hinder(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    report = convert_model(model, to="rmsnorm", output=output, keep=["block0_norm"], **QUICK)
    assert [len(fold.sites) for fold in report.folds.done] == [NORMS - 1]
    assert relative_error(logits(output), logits(model)) < TOLERANCE["float32"]

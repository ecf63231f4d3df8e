"""What is converted by default: the model fused for ONNX Runtime where that brings attention and changes no output."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnxscript.rewriter import ort_fusions

from dynorm_onnx import convert_model
from dynorm_onnx.report import Report
from tests.graph.fold.models import pre_norm
from tests.shipped import MODEL, NORMS, TEXT

QUICK: dict[str, Any] = {
    "data": TEXT, "samples": 8, "max_length": 32, "method": "fit", "time": False, "rotate": False,
}  # fmt: skip


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def notes(report: Report) -> list[str]:
    return [note for note in report.warnings if note.startswith("not fused for ONNX Runtime")]


def test_the_default_fuses_attention_and_finds_the_same_norms(tmp_path: Path) -> None:
    report = convert_model(MODEL, output=tmp_path / "out.onnx", **QUICK)
    assert {"MultiHeadAttention", "SkipDyISRU"} <= operators(tmp_path / "out.onnx")
    assert "Softmax" not in operators(tmp_path / "out.onnx")
    assert report.as_dict()["optimize"] == "ort" and not notes(report)
    assert len(report.with_status("converted")) == NORMS
    plain = convert_model(MODEL, dry_run=True)
    assert [site.name for site in report.sites] == [site.name for site in plain.sites]


@pytest.mark.parametrize("knobs", [{"optimize": "none"}, {"inline": True}, {"to": "rmsnorm"}], ids=str)
def test_a_portable_file_on_request(tmp_path: Path, knobs: dict[str, Any]) -> None:
    report = convert_model(MODEL, output=tmp_path / "out.onnx", **QUICK, **knobs)
    assert "Softmax" in operators(tmp_path / "out.onnx") and "MultiHeadAttention" not in operators(
        tmp_path / "out.onnx"
    )
    assert report.as_dict()["optimize"] == "none" and not notes(report)


def doubled(model: ir.Model, fuse: Any = ort_fusions.optimize_for_ort) -> tuple[ir.Model, dict[str, int]]:
    """The fusions, and a weight twice as large."""
    fused, counts = fuse(model)
    weight = max(fused.graph.initializers.values(), key=lambda value: value.const_value.size)
    weight.const_value = ir.tensor(2 * weight.const_value.numpy())
    return fused, counts


def unloadable(model: ir.Model, fuse: Any = ort_fusions.optimize_for_ort) -> tuple[ir.Model, dict[str, int]]:
    """The fusions, and a product of matrices that reads three dimensions, as GPT-2 in opset 18 comes out."""
    fused, counts = fuse(model)
    product = next(node for node in fused.graph if node.op_type == "MatMul" and node.inputs[1].const_value is not None)
    product.op_type = "Gemm"
    return fused, counts


def broken(model: ir.Model) -> tuple[ir.Model, dict[str, int]]:
    raise RuntimeError("a rule of theirs")


@pytest.mark.parametrize(
    ("rewriter", "reason"),
    [
        (doubled, "fusions change its outputs"),
        (unloadable, "fusions break it: .*Gemm"),
        (broken, "cannot fuse .*: a rule of theirs"),
    ],
)
def test_what_cannot_be_fused_stays_as_it_is_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rewriter: Any, reason: str
) -> None:
    monkeypatch.setattr(ort_fusions, "optimize_for_ort", rewriter)
    report = convert_model(MODEL, output=tmp_path / "out.onnx", **QUICK)
    (note,) = notes(report)
    assert re.search(reason, note)
    assert report.as_dict()["optimize"] == "none" and "Softmax" in operators(tmp_path / "out.onnx")
    assert len(report.with_status("converted")) == NORMS


def test_a_model_without_attention_is_not_even_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_fusions, "optimize_for_ort", broken)
    onnx.save(pre_norm(blocks=1), tmp_path / "model.onnx")
    report = convert_model(tmp_path / "model.onnx", output=tmp_path / "out.onnx", data="random", time=False)
    assert report.as_dict()["optimize"] == "none" and not notes(report)

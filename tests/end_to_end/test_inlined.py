"""Conversions to standard operators: the file without functions is the one with them, and it is what is judged."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dynorm_onnx import convert_model
from dynorm_onnx.convert import main
from dynorm_onnx.runtime.session import make_session
from dynorm_onnx.runtime.variants import CONVERTED, FUSED, ORIGINAL
from tests.shipped import MODEL, NORMS, TEXT
from tests.tolerances import relative_error

QUICK: dict[str, Any] = {
    "data": TEXT, "samples": 4, "max_length": 32, "method": "fit", "time": False, "rotate": False, "optimize": "none",
}  # fmt: skip
TOKENS = {"input_ids": np.random.default_rng(0).integers(0, 256, (2, 40))}


@pytest.mark.parametrize(("function", "coupled"), [("dyisru", 4), ("derf", 0), ("rmsnorm", 0)])
def test_without_functions(function: str, coupled: int, tmp_path: Path) -> None:
    knobs = {**QUICK, "to": function, "coupled": coupled}
    with_functions, inlined = tmp_path / "functions.onnx", tmp_path / "inlined.onnx"
    other = convert_model(MODEL, output=with_functions, **knobs)
    report = convert_model(MODEL, output=inlined, inline=True, **knobs)
    assert any("Coupled" in node.op_type for node in onnx.load(with_functions).graph.node) == bool(coupled)
    model = onnx.load(inlined)
    onnx.checker.check_model(model, full_check=True)
    assert not model.functions and {node.domain for node in model.graph.node} == {""}
    assert {entry.domain for entry in model.opset_import} == {""}
    assert report.as_dict()["inline"] is True and other.as_dict()["inline"] is False
    found, wanted = (make_session(path, kernels=False).run(None, TOKENS)[0] for path in (inlined, with_functions))
    assert relative_error(found, wanted) < 1e-5
    assert report.validation is not None and other.validation is not None
    assert report.validation.largest_error == pytest.approx(other.validation.largest_error, rel=1e-3, abs=1e-5)


def test_a_weight_that_was_folded_is_no_operator(tmp_path: Path) -> None:
    """Of every norm but the last, whose weight goes nowhere: the layer behind it shares that of the embedding."""
    report = convert_model(
        MODEL, to="dyt", output=tmp_path / "out.onnx", inline=True, fold_weights=True, **{**QUICK, "time": True}
    )
    folded = sum(len(done.sites) for done in report.folds.done if done.kind == "weight")
    assert folded == NORMS - 1
    written = [node for node in onnx.load(tmp_path / "out.onnx").graph.node if ".dyt." in node.name]
    assert Counter(node.op_type for node in written) == {
        "Mul": NORMS + 1,
        "Tanh": NORMS,
        "Add": NORMS - 1 + NORMS,
    }  # sums, biases
    assert [row.variant for row in report.timing] == [ORIGINAL, FUSED, CONVERTED]


def test_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, page = tmp_path / "out.onnx", tmp_path / "page.html"
    knobs = ["--samples", "4", "--max-length", "32", "--method", "fit", "--no-time", "--no-rotate", "-q"]
    arguments = ["--data", TEXT, *knobs]
    assert main([*map(str, (MODEL, *arguments, "-o", output, "--report", page)), "--inline"]) == 0
    assert f"written in standard operators, without functions: {output}" in " ".join(capsys.readouterr().out.split())
    assert "in standard operators, without functions" in page.read_text()
    assert not onnx.load(output).functions


def test_norms_that_are_kept_are_written_out_as_well(tmp_path: Path) -> None:
    """Below opset 23 an exact RMSNorm is a function too."""
    convert_model(MODEL, output=tmp_path / "out.onnx", inline=True, keep="*layers.1*", **QUICK)
    model = onnx.load(tmp_path / "out.onnx")
    assert not model.functions and {node.domain for node in model.graph.node} == {""}
    assert Counter(node.op_type for node in model.graph.node)["ReduceMean"] == 2

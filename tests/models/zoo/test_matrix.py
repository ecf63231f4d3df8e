"""Real architectures by real exporters: every norm found, exactly rewritten, and replaced.

By default a part of the table that is done within half a minute; `pytest -m zoo` (make matrix) runs all of it.
"""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")
pytest.importorskip("transformers", reason="needs transformers: pip install transformers")

from models.zoo.architectures import ARCHITECTURES
from models.zoo.cell import Cell
from models.zoo.columns import COLUMNS
from models.zoo.matrix import measure
from models.zoo.table import document

TORCHSCRIPT = ("torchscript-17", "torchscript-17+optimizer")
DYNAMO = ("dynamo-20", "dynamo-20+optimizer", "dynamo-20+optimize_for_ort")
GENAI = ("genai-fp32", "genai-int4")
BUILDER = "needs GenAI's model builder: pip install onnxruntime-genai"


def passed(architecture: str, *columns: str) -> list[Cell]:
    """The cells, of which each one must have a file and pass."""
    cells = list(measure([architecture], columns))
    assert [cell.column for cell in cells] == list(columns)
    for cell in cells:
        assert cell.no_file is None, cell
        assert cell.passes, cell
    return cells


@pytest.mark.parametrize(
    "architecture", ["bert", *(pytest.param(name, marks=pytest.mark.zoo) for name in ("gemma3", "t5"))]
)
def test_torchscript(architecture: str) -> None:
    passed(architecture, *TORCHSCRIPT)


def test_dynamo() -> None:
    passed("qwen3", *DYNAMO)


@pytest.mark.parametrize(("architecture", "norms"), [("qwen3", 9), ("gpt-oss", 5)])
def test_genai(architecture: str, norms: int) -> None:
    pytest.importorskip("onnxruntime_genai", reason=BUILDER)
    columns = GENAI[:1] if architecture == "gpt-oss" else GENAI  # its int4 wants the weights that were published
    assert {cell.sites for cell in passed(architecture, *columns)} == {norms}


@pytest.mark.zoo
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_exporter(architecture: str) -> None:
    pytest.importorskip("onnxruntime_genai", reason=BUILDER)
    cells = list(measure([architecture], list(COLUMNS)))
    assert all(cell.passes for cell in cells), [cell for cell in cells if not cell.passes]
    assert any(cell.no_file is None for cell in cells)


def test_an_exporter_that_fails_says_why() -> None:
    (cell,) = measure(["mamba2"], ["torchscript-17"])
    assert cell.passes and cell.no_file is not None and "Transpose" in cell.no_file


CELL = Cell("llama", "dynamo-20", norms=5, seconds=1.0, sites=5, parity=3e-7, replaced=5)


@pytest.mark.parametrize(
    ("changes", "passes", "shown"),
    [
        ({}, True, "5/5 3e-07 ✓"),
        ({"sites": 4, "replaced": 4}, False, "**4/5 3e-07, 4 replaced ✗**"),
        ({"replaced": 4}, False, "**5/5 3e-07, 4 replaced ✗**"),
        ({"parity": 2e-5}, False, "**5/5 2e-05, 5 replaced ✗**"),
        ({"sites": 0, "replaced": 0, "parity": None, "failure": "it broke"}, False, "**0/5, 0 replaced ✗ [1]**"),
        ({"no_file": "no operator"}, True, "– [1]"),
    ],
)
def test_what_a_cell_says(changes: dict[str, object], passes: bool, shown: str) -> None:
    cell = dataclasses.replace(CELL, **changes)
    assert cell.passes is passes
    page = document([cell], seconds=60.0)
    assert f"| Llama | {shown} |" in page
    assert ("1. it broke" in page, "1. no operator" in page) == (cell.failure is not None, cell.no_file is not None)

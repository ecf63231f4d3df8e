"""What a conversion of a real file may end in, and how the table tells it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models.real_files import table
from models.real_files.catalogue import FILES
from models.real_files.outcome import FileOutcome, Outcome, faults
from models.real_files.run import convert
from tests.end_to_end.test_foreign_files import model

SMALL = """
g (float[n,4,8] x) => (float[n,4,8] y) {
  y = LayerNormalization<axis = -1>(x, w)
}"""


def report(
    error: float | None, *, warnings: tuple[str, ...] = (), usable: bool = True, classes: str | None = None
) -> dict[str, Any]:
    output = {"relative_error": error, "cosine": 0.9, "classes": classes, "class_agreement": None}
    return {
        "sites": [
            {"name": "a", "status": "converted", "reason": None},
            {"name": "b", "status": "refused", "reason": "x|y"},
        ],
        "near_misses": [{"name": "c", "reason": "no square"}, {"name": "d", "reason": "no square"}],
        "verdict": {"usable": usable, "reasons": [] if usable else ["it is ruined"]},
        "validation": {"outputs": {"first": output | {"relative_error": 0.1}, "second": output}},
        "warnings": list(warnings),
    }  # fmt: skip


def ended(code: int | None, made: dict[str, Any] | None = None, stderr: str = "", step: str = "dyisru") -> FileOutcome:
    return FileOutcome("khmersm", 10, {step: Outcome(code, 1.0, made, stderr)})


@pytest.mark.parametrize(
    "outcome",
    [
        ended(0, report(0.4)),
        ended(0, report(0.7, warnings=("the fit is bad",))),
        ended(0, report(0.7, usable=False)),
        ended(0, report(0.7, classes="probability")),
        ended(0, report(None, usable=False)),
        ended(0, report(1e-6), step="find"),
        ended(2, stderr="error: --data is missing"),
        ended(3, stderr="error: no norm"),
    ],
)
def test_what_may_be(outcome: FileOutcome) -> None:
    assert faults(outcome) == []


@pytest.mark.parametrize(
    ("outcome", "fault"),
    [
        (ended(1, stderr="KeyError: 'x'"), "dyisru: exit 1: KeyError: 'x'"),
        (ended(-11), "dyisru: exit -11: "),
        (ended(2, stderr="Traceback (most recent call last):\n error"), "dyisru: a traceback"),
        (ended(None, stderr="stopped after 9 s"), "dyisru: stopped after 9 s"),
        (ended(0), "dyisru: exit 0 and no report"),
        (ended(0, report(0.51)), "dyisru: relative error 0.51 without a warning"),
        (ended(0, report(None)), "dyisru: relative error inf without a warning"),
        (ended(0, report(0.2), step="rmsnorm"), "rmsnorm: an exact rewrite is off by 0.2 without a warning"),
    ],
)
def test_what_may_not(outcome: FileOutcome, fault: str) -> None:
    assert faults(outcome) == [fault]


def test_a_conversion_and_a_refusal_in_their_own_processes(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    onnx.save(model(SMALL, {"w": np.linspace(0.5, 1.5, 8, dtype=np.float32)}), path)
    found = convert(path, ["--to", "rmsnorm", "--no-time", "-o", str(tmp_path / "out.onnx")])
    assert found.code == 0 and found.error is not None and found.error < 1e-5, found.stderr
    (tmp_path / "none.onnx").write_bytes(b"no model")
    refused = convert(tmp_path / "none.onnx", ["--dry-run"])
    assert refused.code == 2 and refused.said.startswith("error: ") and refused.report is None
    assert not faults(FileOutcome("small", 1, {"rmsnorm": found, "find": refused}))


def test_one_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    stopped = convert(tmp_path / "none.onnx", ["--dry-run"], limit=0.01)
    assert stopped.code is None and stopped.stderr.startswith("stopped after")


def whole(made: dict[str, Any]) -> FileOutcome:
    steps = {
        "find": Outcome(0, 1.0, {**made, "validation": None}, ""),
        "rmsnorm": Outcome(2, 1.0, None, "a line\nerror: the model is | odd\n"),
        "dyisru": Outcome(0, 7.0, made, ""),
    }
    return FileOutcome("khmersm", 2_000_000, steps)


def test_the_table_tells_everything_and_each_reason_once() -> None:
    page = table.document([whole(report(0.3, warnings=("little data",)))])
    row = next(line for line in page.splitlines() if line.startswith("| khmersm | khmersm==1.4.2"))
    assert [cell.strip() for cell in row.strip("|").replace(r"\|", "/").split("|")] == [
        "khmersm", "khmersm==1.4.2", "2.0", "6", "0", "1 [1]", "2 [2]", "2 [3]", "0, 0.3", "cosine 0.900",
        "usable [4]", "7",
    ]  # fmt: skip
    notes = ["1. x\\|y", "2. no square", "3. error: the model is \\| odd", "4. little data"]
    assert page[page.index("## Notes") :].splitlines()[2:6] == notes
    assert "## Faults" not in page and "none is ruined without a word" in page
    others = [file.name for file in FILES if file.name != "khmersm"]
    assert f"Not run for this table: {', '.join(others)}." in page


def test_the_table_names_faults() -> None:
    page = table.document([whole(report(0.9))])
    assert "- **khmersm** dyisru: relative error 0.9 without a warning" in page and "1 with a fault" in page


def test_the_table_names_what_should_be_otherwise() -> None:
    page = table.document([whole(report(0.3))])  # whose report tells of one norm, and it has six
    assert "- **khmersm** holds 6 norms; 1 are found or refused" in page
    assert "- **khmersm** rmsnorm: refused, though it is fed what it was made for" in page


def test_where_files_lie_is_left_out() -> None:
    said = Outcome(2, 1.0, None, "error: /some/cache/a.npz and /tmp/x/b.onnx").without("/some/cache", "/tmp/x").said
    assert said == "error: a.npz and b.onnx"


def test_results_come_back_from_their_files(tmp_path: Path) -> None:
    outcome = whole(report(0.9))
    path = tmp_path / "khmersm.json"
    path.write_text(json.dumps(dataclasses.asdict(outcome)))
    assert FileOutcome.read(path) == outcome

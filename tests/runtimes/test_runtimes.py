"""Every runtime on every converted file; docs/runtimes.md says what was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtimes.document import agree, error_cell, message_cell, settle
from tests.runtimes.runtimes import MIDDLE, OLDEST, RUNTIMES, Runtime, outcome
from tests.runtimes.subjects import FORMS, FUNCTIONS, Subjects

TABLE = "runtimes"


@pytest.mark.slow
@pytest.mark.parametrize(
    "runtime", RUNTIMES, ids=lambda runtime: runtime.name + (f" {runtime.target.name}" if runtime.target else "")
)
def test_a_runtime(runtime: Runtime, write: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    runtime.require()
    subjects: Subjects = request.getfixturevalue("subjects")  # not before it is known that they are needed
    runtime.run(subjects.folder, tmp_path)
    for form in FORMS:
        cells = []
        for column in FUNCTIONS:
            found = outcome(tmp_path, subjects.path(column, form).stem)
            is_array = isinstance(found, np.ndarray)
            cells.append(error_cell(found, subjects.expected[column]) if is_array else message_cell(found))
            if form == FORMS[1]:
                assert is_array, f"{runtime.title} cannot run {column} inlined: {found}"
                assert float(cells[-1]) < 1e-5, f"{runtime.title}, {column} inlined"
        settle(TABLE, (runtime.title, form), cells, write=write)


def test_cells_agree_by_what_they_say() -> None:
    assert agree("3e-07", "1e-06") and agree("0", "5e-07") and agree("1e-02", "3e-02") and agree("“no”", "“no”")
    assert not agree("“no”", "3e-07") and not agree("1e-02", "1e-01") and not agree("0", "1e-05")


def test_messages_without_paths_and_marks() -> None:
    said = "Check failed at /tmp/a/b.cpp:3:\nSummary:\n-- No rule in /x/y | failed\x1b[0m"
    assert message_cell(said) == "“No rule in … / failed”"


def test_the_versions_are_those_that_are_installed() -> None:
    root = Path(__file__).parents[2]
    assert f"for version in {OLDEST} {MIDDLE};" in (root / "Makefile").read_text()
    assert f'"onnxruntime>={OLDEST.removesuffix(".0")}.' in (root / "pyproject.toml").read_text()  # a later patch of it

"""Every tool on a converted file in both forms; docs/runtimes.md says what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynorm_onnx.errors import ModelError
from dynorm_onnx.runtime.session import FATAL, make_session
from tests.runtimes.document import error_cell, message_cell, settle
from tests.runtimes.subjects import FORMS, Subjects
from tests.runtimes.tools import TOOLS, Tool

COLUMN = "DyISRU, 4 channels coupled"


def found_by(tool: Tool, source: Path, target: Path, subjects: Subjects) -> str:
    """The cell: what the file that a tool makes gives out, or what the tool or ONNX Runtime says instead."""
    try:
        tool.apply(source, target, dict(subjects.feeds))
    except Exception as error:  # a tool's own, of any kind
        return message_cell(f"{type(error).__name__}: {error}")
    try:
        session = make_session(target, kernels=False, threads=1, log_severity=FATAL)
    except ModelError as error:
        return message_cell(str(error).partition(": ")[2])
    return error_cell(session.run(["logits"], subjects.feeds)[0], subjects.expected[COLUMN])


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: f"{tool.package} {tool.name.replace('`', '')}")
def test_a_tool(tool: Tool, write: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tool.require()
    subjects: Subjects = request.getfixturevalue("subjects")  # not before it is known that they are needed
    for number, form in enumerate(FORMS):
        cell = found_by(tool, subjects.path(COLUMN, form), tmp_path / f"{number}.onnx", subjects)
        settle("tools", (tool.title, form), [cell], write=write)
        if form == FORMS[1]:
            assert float(cell) <= tool.rounds, f"{tool.title} on an inlined file: {cell}"

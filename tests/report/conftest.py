"""One real conversion with --report, for all tests of the page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dynorm_onnx import convert_model
from dynorm_onnx.conversion import saved
from dynorm_onnx.report import Report
from dynorm_onnx.report.evidence import Evidence
from tests.built_once import built_once
from tests.shipped import MODEL, TEXT

KEPT = "model.layers.2.input_layernorm"


@dataclasses.dataclass(frozen=True)
class Page:
    """A report, what its pictures were drawn from, and the page."""

    report: Report
    evidence: Evidence
    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text("utf-8")


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    pytest.importorskip("matplotlib", reason="the page needs matplotlib: pip install dynorm-onnx[report]")
    return built_once(tmp_path_factory, "page", _converted)


def _converted(folder: Path) -> Page:
    gathered: list[Evidence] = []
    stage = saved.staged_html

    def stage_and_keep(report: Report, path: Path, evidence: Evidence | None = None):
        assert evidence is not None
        gathered.append(evidence)
        return stage(report, path, evidence)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved, "staged_html", stage_and_keep)
        report = convert_model(
            MODEL,
            output=folder / "out.onnx",
            report=folder / "out.html",
            data=TEXT,
            samples=10,
            max_length=48,
            keep=KEPT,
        )
    return Page(report, gathered[0], folder / "out.html")

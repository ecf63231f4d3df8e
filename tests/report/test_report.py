"""The report in its two forms, from a real dry run and from a real conversion."""

from __future__ import annotations

import importlib.metadata
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from dynorm_onnx import __version__, convert_model
from dynorm_onnx.report import Report, print_report
from dynorm_onnx.report.console import MOST_ROWS
from tests.report.conftest import KEPT, Page
from tests.shipped import MODEL, NORMS


@pytest.fixture
def report(page: Page) -> Report:
    return page.report


def printed(report: Report, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_json_holds_only_plain_values(report: Report) -> None:
    again = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert again["model"] == str(MODEL) and again["version"] == __version__
    assert [site["status"] for site in again["sites"]].count("kept") == 1
    assert all(site["coupled"] is None for site in again["sites"])  # no massive tokens
    spread = again["sites"][0]["parameters"]["beta"]
    assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    assert {row["variant"] for row in again["timing"]} >= {"original", "original-fused", "converted"}
    steps = "find data fold look rotate calibrate rewrite validate time evidence save"
    assert set(again["seconds"]) == set(steps.split())
    assert again["peak_memory_mib"] > 50
    assert again["changed_initializers"]


def test_a_checkout_that_is_not_installed_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = importlib.metadata.version

    def version(name: str) -> str:
        if name == "dynorm-onnx":
            raise importlib.metadata.PackageNotFoundError(name)
        return asked(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert convert_model(MODEL, dry_run=True).version == __version__


def test_the_console_shows_what_a_person_asks_for(report: Report) -> None:
    text = printed(report, width=200)  # each reason in a line
    for part in (
        f"{NORMS} norms",
        "1 kept",
        f"--keep {KEPT}",
        "next-token loss",
        "original-fused",
        str(report.output),
        "held_out.txt",
    ):
        assert part in text.replace("\n", ""), part


def test_a_thousand_sites_stay_readable(report: Report) -> None:
    import dataclasses

    many = dataclasses.replace(report, sites=report.sites * 120)
    text = printed(many)
    assert f"... {120 * NORMS - MOST_ROWS} more ..." in text
    assert len(text.splitlines()) < MOST_ROWS + 80
    assert Path(str(report.output)).name in text

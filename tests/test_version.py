"""The version stands in dynorm_onnx/__init__.py; what else names it names the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from dynorm_onnx import __version__

ROOT = Path(__file__).parent.parent


def test_pyproject_takes_the_version_from_the_package() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)
    assert "version" not in settings["project"] and settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["scikit-build"]["metadata"]["version"]["input"] == "dynorm_onnx/__init__.py"


def test_the_citation_is_of_this_version_and_licence() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", text, re.MULTILINE) == [__version__]
    assert re.findall(r"^license: (.+)$", text, re.MULTILINE) == ["Apache-2.0"]


def test_the_changelog_begins_with_what_is_unreleased_and_then_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", __version__]

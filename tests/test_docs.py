"""The README stays short, and what it prints again is what the pages print. Links are for `make docs` to check."""

from __future__ import annotations

import re
from pathlib import Path

from tests.public_api import PUBLIC

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
REPORT = (ROOT / "docs" / "report.md").read_text()
LONGEST = 200  # lines that someone with ten minutes reads


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= LONGEST


def test_readme_shows_the_transcript_as_it_is() -> None:
    """Of `make demo`, whose whole output is in docs/report.md; what is left out stands in brackets."""
    (shown,) = (block for block in blocks(README, "") if block.startswith("byte_llama.onnx"))
    (whole,) = (block for block in blocks(REPORT, "") if block.startswith("byte_llama.onnx"))
    parts = re.split(r"^\[.*\]\n", shown, flags=re.MULTILINE)
    places = [whole.index(part) for part in parts]
    assert places == sorted(places)


def test_readme_has_the_program_that_is_tested() -> None:
    """tests/pytorch/test_pytorch_docs.py runs those of docs/pytorch.md."""
    tested = blocks((ROOT / "docs" / "pytorch.md").read_text(), "python")
    assert [block for block in blocks(README, "python") if "replace_norms" in block] == tested[:1]


def test_reference_has_every_public_module() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    assert set(PUBLIC) <= set(re.findall(r"^::: ([\w.]+)", pages, re.MULTILINE))

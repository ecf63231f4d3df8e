"""The texts that language models are calibrated and measured on: apart from each other, and the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.smollm2 import text
from models.smollm2.text import SOURCES, Source

LINE = "This is sentence number {} of document {}, one of many."


def page(name: str, numbers: range) -> str:
    return "".join(f"<p>{LINE.format(number, name)}</p>" for number in numbers)


def test_no_document_is_in_two_files() -> None:
    documents = [(source.package, source.files, source.reader) for source in SOURCES]
    assert len(set(documents)) == len(documents)
    assert {source.to for source in SOURCES} == {"training", "calibration", *text.TESTS}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three packages of a page each; the second repeats ten paragraphs of the first."""
    sources = [Source(to, to, "*.html") for to in ("test_prose", "calibration", "training")]
    monkeypatch.setattr(text, "SOURCES", sources)
    monkeypatch.setattr(text, "TESTS", ["test_prose"])
    for source in sources:
        (tmp_path / source.package).mkdir()
        (tmp_path / source.package / "page.html").write_text(page(source.package, range(200)))
    with (tmp_path / "calibration" / "page.html").open("a") as file:
        file.write(page("test_prose", range(10)))
    return tmp_path


def test_what_a_test_has_is_taken_from_the_others(cache: Path) -> None:
    made = text.texts(cache)
    assert made["test_prose"] == "\n\n".join(LINE.format(n, "test_prose") for n in range(200)) + "\n"
    assert "test_prose" not in made["calibration"]
    assert sorted(made["training"].strip().split("\n\n")) == sorted(LINE.format(n, "training") for n in range(200))


def test_training_text_is_mixed_and_repeatable(cache: Path) -> None:
    first, second = text.texts(cache), text.texts(cache)
    assert first == second
    assert not first["training"].startswith(LINE.format(0, "training"))


def test_a_long_source_is_cut_all_over() -> None:
    found = [f"{number:04d}" * 250 for number in range(100)]  # of 1,000 characters each
    kept = list(text.within(found, 40_000))
    assert len(kept) == 40
    assert set(kept) < set(found) and kept == sorted(kept)
    assert kept[0] < found[25] and kept[-1] > found[75]
    assert list(text.within(found, 10**6)) == found


def test_a_source_without_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing has no text in"):
        text.paragraphs(Source("training", "nothing", "*.html"), tmp_path)

"""The page of --report: well-formed, alone in the world, and with the numbers of the JSON."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from dynorm_onnx import convert_model
from dynorm_onnx.convert import main
from dynorm_onnx.errors import UsageError
from dynorm_onnx.graph.norm_site import NearMiss
from dynorm_onnx.report import Report
from dynorm_onnx.report.evidence import MOST_PICTURES, Evidence, choose_pictures
from dynorm_onnx.report.html import render, write_html
from dynorm_onnx.report.model import SiteReport
from tests.report.conftest import KEPT, Page
from tests.report.pages import Reader
from tests.shipped import MODEL, NORMS

MANY = 1000
LARGEST_BYTES, LONGEST_SECONDS = 5_000_000, 10.0


@pytest.fixture(scope="module")
def reader(page: Page) -> Reader:
    return Reader(page.text)


def tile(reader: Reader, name: str) -> str:
    (found,) = [element for element in reader.find("div", class_="tile") if element.text.strip().startswith(name)]
    return found.text


def test_the_page_carries_the_json(page: Page, reader: Reader) -> None:
    assert reader.json() == json.loads(json.dumps(page.report.as_dict()))


def test_the_page_needs_nothing_from_outside(page: Page, reader: Reader) -> None:
    text = page.text.replace(json.dumps(page.report.as_dict()), "")
    assert "http" not in text and "@import" not in text
    assert not reader.find("link") and not reader.find("img") and not reader.find("iframe")
    assert all("src" not in element.attributes for element in reader.elements)
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


def test_references_lead_somewhere_and_ids_are_unique(reader: Reader) -> None:
    ids = [element["id"] for element in reader.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    links = [element["href"] for element in reader.elements if "href" in element.attributes]
    clips = [element["clip-path"][4:-1] for element in reader.elements if "clip-path" in element.attributes]
    assert links and clips
    assert {link.removeprefix("#") for link in links + clips} <= set(ids)


def test_the_summary_has_the_numbers_of_the_report(page: Page, reader: Reader) -> None:
    validation = page.report.validation
    assert validation is not None and validation.quality is not None
    quality = validation.quality
    assert f"{NORMS - 1} of {NORMS}" in tile(reader, "norms replaced") and "1 kept" in tile(reader, "norms replaced")
    assert f"{quality.kl_mean:.4g}" in tile(reader, "KL to the original")
    assert f"{100 * quality.top1_agreement:.1f} %" in tile(reader, "same top-1")
    assert f"{quality.loss_original:.4f} → {quality.loss_converted:.4f}" in tile(reader, "next-token loss")
    medians = {row.variant: row.median_ms for row in page.report.timing}
    assert f"{medians['original-fused'] / medians['converted']:.2f} ×" in tile(reader, "speed without the library")


def test_the_table_is_sortable_by_true_numbers(page: Page, reader: Reader) -> None:
    (table,) = reader.find("table", class_="sortable")
    headings = [element.text for element in reader.find("th", scope="col")]
    assert headings[:2] == ["#", "norm"] and {"form", "status", "fit error", "parameters"} <= set(headings)
    start = reader.elements.index(table)
    cells = [element for element in reader.elements[start:] if element.tag == "td"][: NORMS * len(headings)]
    rows = [cells[i : i + len(headings)] for i in range(0, len(cells), len(headings))]
    for number, (row, site) in enumerate(zip(rows, page.report.sites, strict=True), 1):
        by_heading = dict(zip(headings, row, strict=True))
        assert by_heading["#"]["data-value"] == str(number)
        assert by_heading["norm"]["data-value"] == site.name == by_heading["norm"].text
        assert by_heading["status"]["data-value"] == site.status
        assert by_heading["fit error"]["data-value"] == ("" if site.error is None else repr(site.error))
        assert (site.reason or "") in by_heading["status"].text


def test_every_converted_norm_has_a_picture_and_the_kept_one_none(page: Page, reader: Reader) -> None:
    captions = " ".join(element.text for element in reader.find("figcaption"))
    for site in page.report.sites:
        assert (site.name in captions) == (site.name != KEPT)
    assert all(figure.attributes.get("aria-label") for figure in reader.find("svg", role="img"))


def test_the_colours_follow_the_page(page: Page) -> None:
    drawn = page.text[page.text.index("<body>") : page.text.index('<script type="application/json"')]
    assert "var(--ink)" in drawn and "var(--new)" in drawn
    assert not re.findall(r"#(?:0\d){3}\b", drawn)  # no placeholder is left
    assert "prefers-color-scheme: dark" in page.text and "@media print" in page.text


def test_words_of_a_model_cannot_become_markup(page: Page) -> None:
    evil = 'a"><script>alert(1)</script>'
    site = dataclasses.replace(page.report.sites[0], name=evil)
    report = dataclasses.replace(
        page.report, model=Path(evil), sites=(site,), near_misses=(NearMiss(evil, evil),), warnings=(evil,)
    )
    pictures = {evil: next(iter(page.evidence.pictures.values()))}
    reader = Reader(render(report, Evidence({evil: 0.5}, pictures)))
    assert len(reader.find("script")) == 2
    assert reader.json()["sites"][0]["name"] == evil


def test_a_thousand_norms_stay_small_and_quick(page: Page) -> None:
    converted = [site for site in page.report.sites if site.name in page.evidence.pictures]
    sites: list[SiteReport] = []
    for i in range(MANY):
        site = converted[i % len(converted)]
        assert site.error is not None
        sites.append(dataclasses.replace(site, name=f"{site.name}.{i}", error=site.error * (1 + i / MANY)))
    chosen = choose_pictures([(site.name, site.error or 0.0) for site in sites])
    pictures = {name: page.evidence.pictures[name.rpartition(".")[0]] for name in chosen}
    evidence = Evidence({site.name: 0.3 for site in sites}, pictures)
    started = time.process_time()
    text = render(dataclasses.replace(page.report, sites=tuple(sites)), evidence)
    assert time.process_time() - started < LONGEST_SECONDS
    assert len(text.encode()) < LARGEST_BYTES
    reader = Reader(text)
    assert len(reader.find("figure", id="norm-1")) == 1
    assert len([element for element in reader.find("td", class_="name")]) == MANY
    assert len(pictures) == MOST_PICTURES
    assert f"{MOST_PICTURES} of {MANY:,}" in text


def test_what_could_not_be_measured_does_not_break_the_page(page: Page) -> None:
    validation = page.report.validation
    assert validation is not None and validation.quality is not None
    counts = np.zeros(len(validation.quality.kl_histogram), int)
    counts[-1] = 7
    broken = dataclasses.replace(
        validation.quality,
        tokens=7,
        kl_mean=float("inf"),
        kl_p99=float("inf"),
        worst=dataclasses.replace(validation.quality.worst, kl=float("inf")),
        kl_histogram=tuple(counts.tolist()),
        loss_converted=float("nan"),
    )
    report = dataclasses.replace(page.report, validation=dataclasses.replace(validation, quality=broken))
    assert Reader(render(report)).json()["validation"]["kl"]["mean"] is None


def test_a_dry_run_has_a_page_too(tmp_path: Path) -> None:
    path = tmp_path / "dry.html"
    assert main([str(MODEL), "--dry-run", "--report", str(path), "-q"]) == 0
    reader = Reader(path.read_text("utf-8"))
    assert str(NORMS) in tile(reader, "norms found")
    assert len(reader.find("td", class_="status-found")) == NORMS
    assert [entry.name for entry in tmp_path.iterdir()] == ["dry.html"]


def test_an_exact_rewrite_has_a_page_too(tmp_path: Path) -> None:
    path = tmp_path / "exact.html"
    report = convert_model(
        MODEL, to="rmsnorm", output=tmp_path / "out.onnx", report=str(path), samples=2, max_length=8, time=False
    )
    reader = Reader(path.read_text("utf-8"))
    assert reader.json() == json.loads(json.dumps(report.as_dict()))
    assert not reader.find("div", class_="gallery")


def test_nothing_at_all_has_a_page_too(page: Page) -> None:
    nothing = Report(Path("m.onnx"), None, "dyisru", None, "none", "0", (), ())
    assert "No norm was found" in render(nothing)


def test_a_missing_extra_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install dynorm-onnx\[report\]"):
        convert_model(tmp_path / "not_there.onnx", report=tmp_path / "r.html")


def test_a_folder_that_is_not_there_is_named_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--report .*r\.html: the folder .* is not there"):
        convert_model(tmp_path / "not_there.onnx", report=tmp_path / "none" / "r.html")
    with pytest.raises(UsageError, match="is a folder"):
        convert_model(tmp_path / "not_there.onnx", report=tmp_path)


def test_the_page_does_not_write_over_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the file of a model"):
        convert_model(MODEL, output=tmp_path / "x", report=tmp_path / "x")


def test_no_half_page_is_left(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UsageError, match="No space left"):
        write_html(page.report, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())

"""The page in a real browser: no error, no sideways scrolling on a phone, and a table that sorts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import Page

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-quic")  # fmt: skip
SECONDS = 120

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")

WATCH = "<script>window.failures = []; addEventListener('error', (event) => failures.push(event.message));</script>"
ASK = """<script>
addEventListener("load", () => {
  const table = document.querySelector("table.sortable");
  const buttons = [...table.querySelectorAll("th button")];
  const button = buttons.find((one) => one.textContent === "fit error");
  const order = () => [...table.tBodies[0].rows].map((row) => row.cells[button.parentElement.cellIndex].dataset.value);
  const answer = { before: order() };
  button.click();
  answer.ascending = order();
  answer.sort = button.parentElement.getAttribute("aria-sort");
  button.click();
  answer.descending = order();
  answer.width = document.documentElement.scrollWidth;
  answer.window = window.innerWidth;
  const pictures = [...document.querySelectorAll("figure svg")];
  answer.pictures = pictures.filter((svg) => svg.getBoundingClientRect().height > 50).length;
  answer.failures = window.failures;
  document.title = JSON.stringify(answer);
});
</script>"""


def look(page: Page, folder: Path, width: int) -> dict[str, Any]:
    """What a script inside the page sees."""
    copy = folder / "page.html"
    text = page.text.replace("<head>", "<head>" + WATCH, 1)
    copy.write_text(text.replace("</body>", ASK + "</body>"), "utf-8")
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", "--dump-dom",
               copy.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None, done.stderr[-2000:]
    return dict(json.loads(unescape(title[1])))


def test_the_page_works_in_a_browser(page: Page, tmp_path: Path) -> None:
    seen = look(page, tmp_path, 1200)
    assert seen["failures"] == []
    known = sorted((value for value in seen["before"] if value), key=float)
    assert known != [value for value in seen["before"] if value]
    assert seen["sort"] == "ascending"
    assert seen["ascending"] == [*known, ""]  # the kept norm has no error, and stays last
    assert seen["descending"] == [*known[::-1], ""]
    assert seen["pictures"] == len(page.evidence.pictures) + 4


def test_a_phone_need_not_scroll_sideways(page: Page, tmp_path: Path) -> None:
    seen = look(page, tmp_path, 390)
    assert seen["width"] <= seen["window"]

"""The tables of docs/runtimes.md: what the tests found last time, row by row.

A test compares what it finds with its rows; with `--write` it writes them anew. Runtimes say what they like, so that
only the beginning of a message is kept; errors are rounding, so that they may differ from machine to machine by a few
times, and none below ROUNDING says anything.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[2] / "docs" / "runtimes.md"
ROUNDING = 2e-6
"""Relative error of logits that orders of summation account for."""
FACTOR = 4.0
LONGEST = 110


def error_cell(found: np.ndarray, expected: np.ndarray) -> str:
    """The relative error of an output."""
    found = found.reshape(expected.shape).astype(np.float64)
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected.astype(np.float64)))
    return f"{error:.0e}" if error else "0"


def message_cell(said: str) -> str:
    """What a runtime or a tool says instead of an output: without paths, and without what comes before a summary."""
    line = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", said).rpartition("Summary:")[2].split())
    line = re.sub(r"\S*/\S*/\S*", "…", line).replace("|", "/").replace("`", "'").strip(" -")
    return f"“{line[:LONGEST].rstrip()}{'…' if len(line) > LONGEST else ''}”"


def agree(written: str, found: str) -> bool:
    """Whether two cells say the same: equal words, or errors of one size."""
    try:
        a, b = float(written), float(found)
    except ValueError:
        return written == found
    return max(a, b) <= ROUNDING or (min(a, b) > 0 and abs(math.log(a / b)) <= math.log(FACTOR))


def rows_of(table: str) -> dict[tuple[str, ...], list[str]]:
    """The rows of a table by their first two cells."""
    lines = _between(table)[2].strip().splitlines()[2:]
    cells = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines)
    return {tuple(row[:2]): row[2:] for row in cells}


def write_row(table: str, key: tuple[str, str], cells: list[str]) -> None:
    """Puts a row into a table, in the place of the one of this key or at the end."""
    before, after, text = _between(table)
    head = text.strip().splitlines()[:2]
    rows = {**rows_of(table), key: cells}
    lines = [*head, *("| " + " | ".join((*name, *row)) + " |" for name, row in rows.items())]
    PAGE.write_text("\n".join([before, *lines, after]), encoding="utf-8")


def _between(table: str) -> tuple[str, str, str]:
    """(the page up to a table's mark, from its end on, the table)."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- {table}: begin -->", f"<!-- {table}: end -->"
    head, _, rest = page.partition(begin)
    text, found, tail = rest.partition(end)
    assert found, f"{PAGE} has no {begin} ... {end}"
    return head + begin, end + tail, text


def settle(table: str, key: tuple[str, str], found: list[str], *, write: bool) -> None:
    """Writes a row, or holds what was found against what the page says."""
    if write:
        write_row(table, key, found)
        return
    written = rows_of(table).get(key)
    assert written is not None, f"{PAGE.name} has no row {key}: write it with `make runtimes WRITE=--write`"
    assert len(written) == len(found) and all(map(agree, written, found)), (
        f"{PAGE.name} says of {key} {written}, found was {found}: `make runtimes WRITE=--write` writes it anew"
    )

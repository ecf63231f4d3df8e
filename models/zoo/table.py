"""The table of cells as Markdown."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Callable, Sequence

from models.zoo.architectures import ARCHITECTURES
from models.zoo.cell import LENGTH, PARITY, SAMPLES, Cell
from models.zoo.columns import COLUMNS

PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "onnxruntime-genai")
GROUPS = {
    "Exported from PyTorch": [n for n in COLUMNS if "+" not in n and not n.startswith("genai")],
    "Optimised afterwards": [n for n in COLUMNS if "+" in n],
    "Written by ONNX Runtime GenAI's model builder": [n for n in COLUMNS if n.startswith("genai")],
}


def document(cells: Sequence[Cell], seconds: float) -> str:
    """The whole page; the cells need not be complete."""
    notes: dict[str, int] = {}
    tables = [_table(title, names, cells, notes, _text) for title, names in GROUPS.items()]
    there = _table("The same files in PyTorch", list(COLUMNS), cells, notes, _text_in_pytorch)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    failed = sum(not cell.passes for cell in cells)
    files = sum(cell.no_file is None for cell in cells)
    parts = [
        "# Architectures and exporters",
        "<!-- Written by `python -m models.zoo.matrix --write docs/architectures.md`; do not edit. -->",
        f"Which norms are found in which files, measured on {datetime.date.today()} with Python "
        f"{platform.python_version()}, {versions}: {len(cells)} cells, {files} of them with a file, "
        f"{failed} failed, in {seconds / 60:.0f} minutes of one core.",
        "Every architecture is built tiny but complete (two layers, random weights, norm weights that are not 1) from "
        "its class in transformers, exported, and converted twice. A cell says:\n\n"
        "- **5/5**: norms found, of norms that run in the PyTorch model (counted there by what modules compute, "
        "independently of the graph);\n"
        f"- **3e-07**: the worst relative error of any float output after `--to rmsnorm`, at most {PARITY:g} wanted;\n"
        f"- **✓**: `--to dyisru` (`--method fit`, {SAMPLES} samples of {LENGTH} tokens, on text that the model writes, "
        "else on random inputs) replaced all of them, and so did `--method reconstruct` in the same file without the "
        "types of its values (`value_info`);\n"
        "- **–** and a number: the exporter gave no file that ONNX Runtime runs as the model; the note says why, in "
        "the exporter's words.",
        *tables,
        there,
        "The worst relative error of any float output of the file, executed by `dynorm_onnx.pytorch.graph`, against "
        "ONNX Runtime.",
        *(["## Notes\n\n" + "\n".join(f"{number}. {text}" for text, number in notes.items())] if notes else []),
        "## Architectures\n\n" + _architectures(cells),
    ]
    return "\n\n".join(parts) + "\n"


def _table(
    title: str, names: Sequence[str], cells: Sequence[Cell], notes: dict[str, int], text: Callable[..., str]
) -> str:
    """A row an architecture; `notes` gathers the sentences that cells refer to by number."""
    by_place = {(cell.architecture, cell.column): cell for cell in cells}
    shown = [name for name in names if any(cell.column == name for cell in cells)]
    if not shown:
        return f"## {title}\n\nNot run."
    rows = [["", *(COLUMNS[name].title for name in shown)], ["---"] * (len(shown) + 1)]
    for key, architecture in ARCHITECTURES.items():
        found = [by_place.get((key, name)) for name in shown]
        if any(found):
            rows.append([architecture.title, *(text(cell, notes) if cell else "not run" for cell in found)])
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _text(cell: Cell, notes: dict[str, int]) -> str:
    why = cell.no_file or cell.failure
    mark = _mark(why, notes)
    if cell.no_file is not None:
        return f"– {mark}"
    measured = f"{cell.sites}/{cell.norms}" + ("" if cell.parity is None else f" {_number(cell.parity)}")
    return f"{measured} ✓" if cell.passes else f"**{measured}, {cell.replaced} replaced ✗{mark and f' {mark}'}**"


def _text_in_pytorch(cell: Cell, notes: dict[str, int]) -> str:
    if cell.in_pytorch is not None:
        return _number(cell.in_pytorch)
    return f"– {_mark(cell.not_in_pytorch, notes)}".rstrip()


def _number(error: float) -> str:
    return f"{error:.0e}" if error else "0"


def _mark(why: str | None, notes: dict[str, int]) -> str:
    return "" if why is None else f"[{notes.setdefault(why, len(notes) + 1)}]"


def _architectures(cells: Sequence[Cell]) -> str:
    lines = ["| name | class in transformers | norms | exported with |", "| --- | --- | --- | --- |"]
    counts = {cell.architecture: cell.norms for cell in cells}
    for key, architecture in ARCHITECTURES.items():
        if key not in counts:
            continue
        settings = [
            f"{architecture.attention} attention" if architecture.attention else "",
            f"{architecture.experts} experts" if architecture.experts else "",
            "a fixed length" if architecture.fixed_length else "",
        ]
        asked = ", ".join(filter(None, settings)) or "its defaults"
        lines.append(f"| {key} | {architecture.model} | {counts[key]}: {architecture.norms} | {asked} |")
    return "\n".join(lines)

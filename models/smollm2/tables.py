"""The measures of models.smollm2.evaluate as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMNS = {
    "tokens": ("tokens", ",d"),
    "loss_before": ("loss", ".3f"),
    "loss_after": ("after", ".3f"),
    "kl_mean": ("KL, mean", ".3g"),
    "kl_median": ("median", ".3g"),
    "kl_p99": ("99 %", ".3g"),
    "top1": ("top-1", ".3f"),
}


def show(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what evaluate() gives."""
    console = console or Console()
    for name, file in found["files"].items():
        console.print(quality(f"{name}: by kind of text", {**file["kinds"], "all": file["all"]}))
        console.print(quality(f"{name}: by position in the window", file["positions"]))
        console.print(worst(f"{name}: where it differs most", file["worst"]))
    if found["continuations"]:
        console.print(continuations(found["continuations"]))


def quality(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    """A row of measures for each name."""
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading, _ in COLUMNS.values():
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(format(row[key], form) for key, (_, form) in COLUMNS.items()))
    return table


def worst(title: str, rows: list[dict[str, Any]]) -> Table:
    """The single tokens, with the end of the text that the model had seen."""
    table = Table("kind", "window", "position", "KL", "behind", title=title, title_justify="left")
    for row in rows:
        # Text is no markup: what stands in brackets there is not a style
        shown = Text(row["text"].replace("\n", "⏎"))
        table.add_row(row["kind"], str(row["window"]), str(row["position"]), f"{row['kl']:.2f}", shown)
    return table


def continuations(rows: list[dict[str, Any]]) -> Table:
    """Side by side what each model writes; in brackets the tokens that it has in common with the original."""
    names = list(rows[0]["written"])
    table = Table("prompt", *names, title="Greedy continuations", title_justify="left", show_lines=True)
    for row in rows:
        texts = [Text(f"{row['written'][name]} [{row['same'][name]}]") for name in names]
        table.add_row(Text(row["asked"]), *texts)
    return table

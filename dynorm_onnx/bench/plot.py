"""Benchmark rows as a picture; needs matplotlib, which comes with the [report] extra."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynorm_onnx.bench.models import ModelRow
from dynorm_onnx.bench.operators import RMS_NORM
from dynorm_onnx.bench.ops import OpsRow
from dynorm_onnx.bench.show import cell, describe
from dynorm_onnx.plotting import require_matplotlib, save_figure

_COLUMNS = 2
_PANEL_INCHES = (7.0, 3.6)


def plot_ops(rows: Sequence[OpsRow], path: Path) -> None:
    """A panel per type, channels, form and chain: speed against ONNX Runtime's RMSNorm over the rows."""
    groups = [(key, list(group)) for key, group in itertools.groupby(rows, key=cell)]
    figure, panels = _panels(len(groups))
    for axes, ((dtype, channels, skip, chain), group) in zip(panels, groups, strict=False):
        shown = [row for row in group if row.speedup_over_rmsnorm is not None and row.operator != RMS_NORM]
        for operator in dict.fromkeys(row.operator for row in shown):
            line = [row for row in shown if row.operator == operator]
            axes.plot([row.rows for row in line], [row.speedup_over_rmsnorm for row in line], "o-", label=operator)
        axes.axhline(1, color="0.4", linewidth=1)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title(f"{describe(skip, chain)}, {channels} channels, {dtype}", fontsize=10)
        axes.set_xlabel("rows (batch x length)")
        axes.set_ylabel("speed, RMSNorm's = 1")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path, "--plot")


def plot_model(name: str, rows: Sequence[ModelRow], path: Path) -> None:
    """A panel per kind of batch: the median of each variant, with its 10 and 90 % quantiles."""
    groups = [(key, list(group)) for key, group in itertools.groupby(rows, key=lambda row: row.batch)]
    figure, panels = _panels(len(groups))
    for axes, (batch, group) in zip(panels, groups, strict=False):
        medians = [row.median_ms for row in group]
        below = [row.median_ms - row.p10_ms for row in group]
        above = [row.p90_ms - row.median_ms for row in group]
        axes.barh([row.variant for row in group], medians, xerr=[below, above], color="C0", capsize=3)
        axes.invert_yaxis()
        axes.set_title(f"{name}, {batch}", fontsize=10)
        axes.set_xlabel("ms")
    save_figure(figure, path, "--plot")


def _panels(count: int) -> tuple[Any, list[Any]]:
    columns = min(count, _COLUMNS)
    lines = -(-count // columns)
    width, height = _PANEL_INCHES
    figure = require_matplotlib("--plot")(figsize=(width * columns, height * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for unused in panels[count:]:
        unused.set_visible(False)
    return figure, panels

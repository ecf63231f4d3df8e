"""Benchmark rows as tables for people and as one JSON object for programs."""

from __future__ import annotations

import dataclasses
import itertools
import os
import platform
import subprocess
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dynorm_onnx import __version__
from dynorm_onnx.bench.models import ModelRow
from dynorm_onnx.bench.ops import OpsRow
from dynorm_onnx.runtime.library import onnxruntime

Rows = Sequence[OpsRow] | Sequence[ModelRow]


def as_json(benchmark: str, rows: Rows, *, provider: str, threads: int | None) -> dict[str, Any]:
    """The JSON object of a benchmark: what was measured, on what, and the rows."""
    return {
        "benchmark": benchmark,
        "provider": provider,
        "threads": threads,
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "gpu": graphics_processor() if provider == "cuda" else None,
        },
        "versions": {
            "dynorm-onnx": __version__,
            "onnxruntime": onnxruntime().__version__,
            "python": platform.python_version(),
        },
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def print_ops(rows: Sequence[OpsRow], console: Console) -> None:
    """A table for every type, number of channels, form and length of chain."""
    for (dtype, channels, skip, chain), group in itertools.groupby(rows, key=cell):
        title = f"{describe(skip, chain)}, {channels} channels, {dtype}"
        table = _table(title, ("rows", "operator"), ("median µs", "p10", "p90", "vs RMSNorm", "vs copy"))
        last = None
        for row in group:
            if last not in (None, row.rows):
                table.add_section()
            table.add_row(
                "" if row.rows == last else row.rows,
                row.operator,
                *(f"{1e3 * ms:.1f}" for ms in (row.median_ms, row.p10_ms, row.p90_ms)),
                _ratio(row.speedup_over_rmsnorm),
                _ratio(row.speedup_over_copy),
            )
            last = row.rows
        console.print(table)
    console.print("Ratios above 1 are faster. A copy is one Mul; of the Skip forms, one Add.")


def print_model(name: str, rows: Sequence[ModelRow], console: Console) -> None:
    """One table: the variants of each kind of batch."""
    table = _table(name, ("batch", "variant"), ("median ms", "p10", "p90", "vs fused"))
    last = None
    for row in rows:
        if last not in (None, row.batch):
            table.add_section()
        table.add_row(
            "" if row.batch == last else row.batch,
            row.variant,
            *(f"{ms:.3f}" for ms in (row.median_ms, row.p10_ms, row.p90_ms)),
            _ratio(row.speedup_over_fused),
        )
        last = row.batch
    console.print(table)
    console.print("Ratios above 1 are faster than the original at its best (original-fused).")


def cell(row: OpsRow) -> tuple[str, int, bool, int]:
    """What one table or one panel of the plot holds."""
    return row.dtype, row.channels, row.skip, row.chain


def describe(skip: bool, chain: int) -> str:
    """The form in words: "Skip forms, a chain of 12"."""
    return f"{'Skip forms' if skip else 'operators'}, {f'a chain of {chain}' if chain > 1 else 'alone'}"


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def graphics_processor() -> str | None:
    """The first GPU's name and driver, as NVIDIA's tool gives them; None where it is not there."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"

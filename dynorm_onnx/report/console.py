"""The report as a person reads it in a terminal or a log: sites, quality, timing, where it went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from dynorm_onnx.report.model import Report, SiteReport

MOST_ROWS = 40
"""Longer lists of sites are shown by their first and last rows; the JSON has them all."""


WORTH_FUSING = 0.95
"""Share of the plain original's time below which its fused form is worth a hint."""


def print_report(report: Report, console: Console) -> None:
    """Write the report to a console."""
    counts = Counter(site.status for site in report.sites)
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    console.print(f"[bold]{report.model.name}[/bold] → {report.to}: {len(report.sites)} norms, {told}")
    console.print(_sites(report))
    for miss in report.near_misses:
        console.print(f"not a norm: {miss.name}: {miss.reason}")
    for line in _folds(report):
        console.print(line)
    if report.calibration:
        c = report.calibration
        console.print(f"calibrated on {c.tokens:,} tokens ({c.source}), {c.samples} samples, {c.seconds:.1f} s")
    if report.distillation:
        console.print(_distillation(report.distillation))
    if report.validation:
        console.print(_quality(report))
    if report.timing:
        console.print(_timing(report))
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}")
    if report.output:
        console.print(f"written: [bold]{report.output}[/bold]")


def _distillation(run: Mapping[str, Any]) -> str:
    losses = [point["loss"] for point in run["losses"]]
    return (
        f"distilled on {run['tokens']:,} tokens in {run['steps']} steps "
        f"({run['train']} parameters, {run['precision']}), "
        f"loss {losses[0]:.4f} → {losses[-1]:.4f}, {run['seconds']:.0f} s"
    )


def _sites(report: Report) -> Table:
    table = Table(title="Norms", title_justify="left")
    for heading in ("site", "kind", "form", "channels", "type", "status", "fit error"):
        table.add_column(heading, justify="right" if heading in ("channels", "fit error") else "left")
    rows = report.sites
    if len(rows) > MOST_ROWS:
        half = MOST_ROWS // 2
        for site in rows[:half]:
            _add_site(table, site)
        table.add_row(f"... {len(rows) - 2 * half} more ...")
        rows = rows[-half:]
    for site in rows:
        _add_site(table, site)
    return table


def _add_site(table: Table, site: SiteReport) -> None:
    table.add_row(
        site.name,
        site.kind,
        site.form,
        str(site.channels or "?"),
        site.dtype or "?",
        f"{site.status}: {site.reason}" if site.reason else site.status,
        "" if site.error is None else f"{site.error:.3f}",
    )


def _folds(report: Report) -> Iterator[str]:
    """A line for each kind of exact fold that was done."""
    what = {"centring": "centrings into the weights upstream", "weight": "weights into the layers that read them"}
    for kind, told in what.items():
        done = [fold for fold in report.folds.done if fold.kind == kind]
        if done:
            sites = sum(len(fold.sites) for fold in done)
            into = len({name for fold in done for name in fold.into})
            yield f"folds: {sites} {told} ({into} changed; outputs moved by {report.folds.error or 0:.1g})"


def _quality(report: Report) -> Table:
    validation = report.validation
    assert validation is not None
    table = Table(title=f"Quality on {validation.samples} held-out samples", title_justify="left")
    for heading in ("measure", "original", "converted"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    quality = validation.quality
    if quality is not None:
        if quality.loss_original is not None and quality.loss_converted is not None:
            table.add_row("next-token loss, nats", f"{quality.loss_original:.4f}", f"{quality.loss_converted:.4f}")
        table.add_row("KL to the original, mean", "0", f"{quality.kl_mean:.4f}")
        table.add_row("KL to the original, 99 % quantile", "0", f"{quality.kl_p99:.4f}")
        table.add_row("top-1 agreement", "1", f"{quality.top1_agreement:.4f}")
    for name, error in validation.outputs.items():
        table.add_row(f"{name}: relative error", "0", f"{error.relative_error:.3g}")
        table.add_row(f"{name}: cosine, mean", "1", f"{error.cosine:.4f}")
    return table


def _timing(report: Report) -> Table:
    table = Table(title="Time of one batch in ONNX Runtime", title_justify="left")
    for heading in ("variant", "provider", "median ms", "p10", "p90", "speed against original-fused"):
        table.add_column(heading, justify="left" if heading in ("variant", "provider") else "right")
    fused, plain = (_median(report, variant) for variant in ("original-fused", "original"))
    if fused and plain and fused < WORTH_FUSING * plain and report.optimize == "none":
        table.caption = "original-fused has attention and the like fused too: --optimize ort does so before converting"
        table.caption_justify = "left"
    for t in report.timing:
        ratio = f"{fused / t.median_ms:.2f}x" if fused else ""
        table.add_row(t.variant, t.provider, f"{t.median_ms:.3f}", f"{t.p10_ms:.3f}", f"{t.p90_ms:.3f}", ratio)
    return table


def _median(report: Report, variant: str) -> float | None:
    return next((t.median_ms for t in report.timing if t.variant == variant), None)

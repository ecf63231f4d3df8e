"""The report as a person reads it in a terminal or a log: the verdict, sites, quality, timing, where it went.

What comes from a model or a path goes through Text or escape(): rich reads square brackets as markup.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dynorm_onnx.report.model import Report, SiteReport
from dynorm_onnx.runtime.measures import TokenQuality
from dynorm_onnx.runtime.validate import Validation

MOST_ROWS = 40
"""Longer lists of sites are shown by their first and last rows; the JSON has them all."""


WORTH_FUSING = 0.95
"""Share of the plain original's time below which its fused form is worth a hint."""


def print_report(report: Report, console: Console) -> None:
    """Write the report to a console."""
    if report.verdict is not None and not report.verdict.usable:
        console.print(Text(report.verdict.sentence, style="bold red"), soft_wrap=True)
        for line in report.verdict.advice:
            console.print(Text(f"  try {line}"), soft_wrap=True)
    for alarm in report.alarms:
        console.print(Text(f"warning: {alarm}", style="bold yellow"), soft_wrap=True)
    counts = Counter(site.status for site in report.sites)
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    arrow = "→" if console.encoding.startswith("utf") else "->"
    _say(console, f"[bold]{escape(report.model.name)}[/bold] {arrow} {report.to}: {len(report.sites)} norms, {told}")
    console.print(_sites(report))
    for miss in report.near_misses:
        _say(console, escape(f"not a norm: {miss.name}: {miss.reason}"))
    for line in _folds(report):
        _say(console, line)
    for line in _rotations(report):
        _say(console, line)
    if (told_of := _coupled(report)) is not None:
        _say(console, told_of)
    if report.calibration:
        c = report.calibration
        source = escape(c.source)
        resumed = f"; {c.resumed} results are of a run that was cut" if c.resumed else ""
        _say(console, f"calibrated on {c.tokens:,} tokens ({source}), {c.samples} samples, {c.seconds:.1f} s{resumed}")
    if report.distillation:
        _say(console, _distillation(report.distillation, arrow))
    if report.validation:
        console.print(_quality(report.validation))
    if report.timing:
        console.print(_timing(report))
    for warning in report.warnings:
        _say(console, f"[yellow]warning:[/yellow] {escape(warning)}")
    if report.output:
        form = " in standard operators, without functions" if report.inline else ""
        _say(console, f"written{form}: [bold]{escape(str(report.output))}[/bold]")


def _say(console: Console, markup: str) -> None:
    """A line as it is: names like :key: are no emoji."""
    console.print(markup, emoji=False)


def _distillation(run: Mapping[str, Any], arrow: str) -> str:
    losses = [point["loss"] for point in run["losses"]]
    return (
        f"distilled on {run['tokens']:,} tokens in {run['steps']} steps "
        f"({run['train']} parameters, {run['precision']}), "
        f"loss {losses[0]:.4f} {arrow} {losses[-1]:.4f}, {run['seconds']:.0f} s"
        + ("" if run.get("kept", True) else ": nothing of it is kept")
    )


def _sites(report: Report) -> Table:
    table = Table(title="Norms", title_justify="left")
    coupled = any(site.coupled for site in report.sites)
    numbers = ("channels", "coupled", "fit error")
    middle = ("channels", "coupled") if coupled else ("channels",)
    for heading in ("site", "kind", "form", *middle, "type", "status", "fit error"):
        table.add_column(heading, justify="right" if heading in numbers else "left")
    rows = report.sites
    if len(rows) > MOST_ROWS:
        half = MOST_ROWS // 2
        for site in rows[:half]:
            _add_site(table, site, coupled)
        table.add_row(f"... {len(rows) - 2 * half} more ...")
        rows = rows[-half:]
    for site in rows:
        _add_site(table, site, coupled)
    return table


def _add_site(table: Table, site: SiteReport, coupled: bool) -> None:
    table.add_row(
        Text(site.name),
        site.kind,
        site.form,
        str(site.channels or "?"),
        *([str(site.coupled)] if coupled else []),
        site.dtype or "?",
        Text(f"{site.status}: {site.reason}" if site.reason else site.status),
        "" if site.error is None else f"{site.error:.3f}",
    )


def _coupled(report: Report) -> str | None:
    """A line on what the coupled channels brought."""
    sites = [site for site in report.sites if site.coupled and site.length_errors]
    if not sites:
        return None
    most = max(site.coupled for site in sites)
    before, after = (statistics.median(site.length_errors[place] for site in sites) for place in (0, -1))
    return (
        f"coupled: up to {most} channels stay in the sum of {len(sites)} norms; a token's squared length is then "
        f"missed by {after:.2g} instead of {before:.2g} (median over the norms, relative)"
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


def _rotations(report: Report) -> Iterator[str]:
    """A line for each stream that was turned."""
    for found in report.rotations.lengths:
        yield (
            f"rotated: the stream of {found.channels} channels that {len(found.sites)} norms read, of which "
            f"{found.directions} then tell a token's squared length to {found.error_after:.3f} instead of "
            f"{found.error_before:.3f} (relative; outputs moved by {report.rotations.relative_error or 0:.1g})"
        )
    for stream in report.rotations.done:
        axes = f", {len(stream.axes)} massive or coupled channels left as axes" if stream.axes else ""
        yield (
            f"rotated: the stream of {stream.channels} channels that {len(stream.sites)} norms read{axes}; behind them "
            f"the functions err by {stream.error_after:.3f} instead of {stream.error_before:.3f} (relative; outputs "
            f"moved by {report.rotations.relative_error or 0:.1g})"
        )


def _quality(validation: Validation) -> Table:
    table = Table(title=f"Quality on {validation.samples} held-out samples", title_justify="left")
    for heading in ("measure", "original", "converted"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    if validation.quality is not None:
        for row in _predictions(validation.quality):
            table.add_row(*row)
    for row in _on_calibration(validation):
        table.add_row(*row)
    for name, error in validation.outputs.items():
        table.add_row(Text(f"{name}: relative error"), "0", f"{error.relative_error:.3g}")
        if error.cosine is not None:
            table.add_row(Text(f"{name}: cosine, mean"), "1", f"{error.cosine:.4f}")
        if error.classes == "probability":
            table.add_row(Text(f"{name}: absolute error, mean"), "0", f"{error.absolute_error:.3g}")
        if error.class_agreement is not None:
            at = " at 0.5" if error.classes == "probability" else ""
            table.add_row(Text(f"{name}: same class{at}"), "1", f"{error.class_agreement:.4f}")
    return table


def _predictions(quality: TokenQuality) -> Iterator[tuple[str, str, str]]:
    if quality.loss_original is not None and quality.loss_converted is not None:
        yield "next-token loss, nats", f"{quality.loss_original:.4f}", f"{quality.loss_converted:.4f}"
    yield "KL to the original, mean", "0", f"{quality.kl_mean:.4f}"
    yield "KL to the original, median", "0", f"{quality.kl_median:.4f}"
    yield "KL to the original, 99 % quantile", "0", f"{quality.kl_p99:.4f}"
    yield "top-1 agreement", "1", f"{quality.top1_agreement:.4f}"
    for which, part in (("first tokens", quality.first), ("other tokens", quality.others)):
        if part is None:
            continue
        if part.loss_original is not None and part.loss_converted is not None:
            yield f"{which}: next-token loss, nats", f"{part.loss_original:.4f}", f"{part.loss_converted:.4f}"
        yield f"{which}: KL, mean", "0", f"{part.kl_mean:.4f}"
        yield f"{which}: top-1 agreement", "1", f"{part.top1_agreement:.4f}"


def _on_calibration(validation: Validation) -> Iterator[tuple[str, str, str]]:
    """What a sample of the calibration data gives, to be held beside the held-out samples."""
    other = validation.on_calibration
    if other is None:
        return
    if other.quality is not None:
        yield "on calibration text: KL, mean", "0", f"{other.quality.kl_mean:.4f}"
        yield "on calibration text: top-1 agreement", "1", f"{other.quality.top1_agreement:.4f}"
    else:
        yield "on calibration data: largest relative error", "0", f"{other.largest_error:.3g}"


def _timing(report: Report) -> Table:
    table = Table(title="Time of one batch in ONNX Runtime", title_justify="left")
    for heading in ("variant", "provider", "runs", "median ms", "p10", "p90", "speed against original-fused"):
        table.add_column(heading, justify="left" if heading in ("variant", "provider") else "right")
    fused, plain = (_median(report, variant) for variant in ("original-fused", "original"))
    if fused and plain and fused < WORTH_FUSING * plain and report.optimize == "none":
        table.caption = "original-fused has attention and the like fused too: --optimize ort does so before converting"
        table.caption_justify = "left"
    for t in report.timing:
        ratio = f"{fused / t.median_ms:.2f}x" if fused else ""
        milliseconds = (f"{time:.3f}" for time in (t.median_ms, t.p10_ms, t.p90_ms))
        table.add_row(t.variant, t.provider, f"{t.runs:,}", *milliseconds, ratio)
    return table


def _median(report: Report, variant: str) -> float | None:
    return next((t.median_ms for t in report.timing if t.variant == variant), None)

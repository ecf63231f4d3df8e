"""The page: its sections in the order in which a person asks, each a function from the report to HTML."""

from __future__ import annotations

import importlib.resources
import json
from html import escape

from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.report.evidence import Evidence
from dynorm_onnx.report.html import figures
from dynorm_onnx.report.html.summary import summary, verdict
from dynorm_onnx.report.html.svg import style
from dynorm_onnx.report.html.table import breakable, site_anchors, sites_table, table
from dynorm_onnx.report.model import Report
from dynorm_onnx.runtime.measures import TokenQuality
from dynorm_onnx.runtime.validate import Validation

SHAPES = {
    "dot": '<circle cx="16" cy="8" r="3" fill="{}"/>',
    "diamond": '<path d="M16 3l5 5-5 5-5-5z" fill="{}"/>',
    "hollow": '<path d="M16 3.5l4.5 4.5-4.5 4.5-4.5-4.5z" fill="none" stroke="{}" stroke-width="1.5"/>',
    "band": '<path d="M0 3h32v10H0z" fill="{0}" opacity=".3"/><path d="M0 8h32" stroke="{0}" stroke-width="3"/>',
    "dash": '<path d="M0 8h32" stroke="{}" stroke-width="2.5" stroke-dasharray="8 3"/>',
    "dots": '<path d="M0 8h32" stroke="{}" stroke-width="2.5" stroke-dasharray="2.5 2.5"/>',
}


def render(report: Report, evidence: Evidence | None = None) -> str:
    """The whole page. Without evidence (nothing was fitted, or a dry run) it has no pictures of sites."""
    files = importlib.resources.files("dynorm_onnx.report.html")
    title = f"{report.model.name} → {_target(report)}"
    with style():
        sections = "\n".join(
            part
            for part in (
                summary(report),
                _quality(report),
                _speed(report),
                _depth(report, evidence),
                _pictures(report, evidence),
                _norms(report, evidence),
                _near_misses(report),
                _record(report),
            )
            if part
        )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{files.joinpath("page.css").read_text("utf-8")}</style>
</head>
<body>
<header>
{verdict(report)}<h1>{escape(title)}</h1>
<p class="quiet">{_subtitle(report)}</p>
</header>
<main>
{sections}
</main>
<footer class="quiet">dynorm-onnx {escape(report.version)}. This file needs nothing from the network.</footer>
<script type="application/json" id="report-json">{_embedded(report)}</script>
<script>
{files.joinpath("page.js").read_text("utf-8")}</script>
</body>
</html>
"""


def _target(report: Report) -> str:
    return REGISTRY[report.to].op_type if report.to in REGISTRY else "RMSNorm, exactly"


def _subtitle(report: Report) -> str:
    if report.output is None:
        return f"A look at <code>{escape(str(report.model))}</code>: nothing was converted, nothing written."
    method = f" by the method “{escape(report.method)}”" if report.method else ""
    form = " in standard operators, without functions" if report.inline else ""
    return (
        f"<code>{escape(str(report.model))}</code>{method}, written to <code>{escape(str(report.output))}</code>{form}"
    )


def _embedded(report: Report) -> str:
    """The JSON object of --json, safe inside a script element."""
    return json.dumps(report.as_dict(), allow_nan=False).replace("<", "\\u003c")


def _section(title: str, text: str, content: str) -> str:
    lead = f"<p>{text}</p>\n" if text else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{lead}{content}\n</section>"


def _figure(svg: str, caption: str, kind: str = "") -> str:
    css = f' class="{kind}"' if kind else ""
    body = f'<div class="scroll">{svg}</div>' if kind else svg
    return f"<figure{css}>\n{body}\n<figcaption>{caption}</figcaption>\n</figure>"


def _quality(report: Report) -> str:
    validation = report.validation
    if validation is None:
        return ""
    outputs = f'<div class="scroll">{_outputs(validation)}</div>'
    text = f"Measured on {validation.samples} samples that the calibration has not seen, against the original."
    quality = validation.quality
    if quality is None:
        return _section("Quality", text, outputs)
    worst = quality.worst
    pair = _figure(
        figures.kl_histogram(quality), f"How far the predictions of {quality.tokens:,} single tokens moved."
    ) + _figure(
        figures.kl_tail(quality),
        f"The tail. The worst token is number {worst.position} of sample {worst.sample}, both counted from 0.",
    )
    parts = f'<div class="scroll">{_parts(validation, quality)}</div>'
    return _section("Quality", text, f'<div class="pair">{pair}</div>\n{parts}\n{outputs}')


def _outputs(validation: Validation) -> str:
    """The table of the outputs' errors; a column that no output has a number for is left out."""
    columns = {
        "relative error": [f"{error.relative_error:.3g}" for error in validation.outputs.values()],
        "absolute error, mean": [f"{error.absolute_error:.3g}" for error in validation.outputs.values()],
        "cosine, mean": [_or_empty(error.cosine) for error in validation.outputs.values()],
        "cosine, least": [_or_empty(error.cosine_min) for error in validation.outputs.values()],
        "same class": [_or_empty(error.class_agreement) for error in validation.outputs.values()],
    }
    used = {name: cells for name, cells in columns.items() if any(cells)}
    rows = list(zip(map(escape, validation.outputs), *used.values(), strict=True))
    return table(("output", *used), rows)


def _parts(validation: Validation, quality: TokenQuality) -> str:
    """The table of predictions: all held-out tokens, first ones and others apart, and beside them calibration text."""
    calibration = validation.on_calibration.quality if validation.on_calibration is not None else None
    parts = {
        "held-out tokens": quality,
        "first of each sample": quality.first,
        "all others": quality.others,
        "calibration text": calibration,
    }
    rows = [
        (
            name,
            f"{part.tokens:,}",
            f"{part.kl_mean:.4g}",
            f"{part.top1_agreement:.4f}",
            _or_empty(part.loss_original),
            _or_empty(part.loss_converted),
        )
        for name, part in parts.items()
        if part is not None
    ]
    return table(("", "tokens", "KL, mean", "top-1 agreement", "loss before", "loss after"), rows)


def _or_empty(number: float | None) -> str:
    return "" if number is None else f"{number:.4f}"


def _speed(report: Report) -> str:
    if not report.timing:
        return ""
    fused = next((row.median_ms for row in report.timing if row.variant == "original-fused"), None)
    rows = [
        (
            escape(row.variant),
            escape(row.provider),
            f"{row.runs:,}",
            f"{row.median_ms:.3f}",
            f"{row.p10_ms:.3f}",
            f"{row.p90_ms:.3f}",
            f"{fused / row.median_ms:.2f}" if fused else "",
        )
        for row in report.timing
    ]
    columns = ("variant", "provider", "runs", "median, ms", "10 %", "90 %", "speed")
    text = (
        "One batch in ONNX Runtime. “original-fused” is the original at its best, the fair one to compare with; "
        "“converted-kernels” has this package's custom-op library registered, “converted” has not. Speed is "
        "relative to original-fused; above 1 is faster."
    )
    chart = _figure(figures.timing(report.timing), "Whiskers: 10 to 90 % of the runs.")
    numbers = f'<div class="scroll">{table(columns, rows, numbers=5)}</div>'
    return _section("Speed", text, f'<div class="pair">{chart}\n{numbers}</div>')


def _depth(report: Report, evidence: Evidence | None) -> str:
    if not any(site.error is not None for site in report.sites):
        return ""
    text = (
        "The relative error of each norm's output. It is not the damage to the model: what follows a norm makes up "
        "for some of it and passes on the rest."
    )
    held_out = evidence.errors if evidence else {}
    caption = f"All {len(report.sites):,} norms; the numbers are those of the table below."
    return _section("Error along the depth", text, _figure(figures.damage(report.sites, held_out), caption, "wide"))


def _pictures(report: Report, evidence: Evidence | None) -> str:
    if evidence is None or not evidence.pictures:
        return ""
    anchors = site_anchors(report)
    legend = "".join(
        f'<li><svg viewBox="0 0 32 16" aria-hidden="true">{SHAPES[shape].format(f"var(--{name})")}</svg>{words}</li>'
        for name, shape, words in figures.legend_entries(report.to)
    )
    shown = [(number, site) for number, site in enumerate(report.sites, 1) if site.name in evidence.pictures]
    gallery = "\n".join(
        f'<figure id="{anchors[site.name]}">\n'
        f"{figures.site_picture(site.name, evidence.pictures[site.name], number)}\n"
        f"<figcaption><strong>{number}. {breakable(site.name)}</strong>, fit error {site.error:.3f}</figcaption>\n"
        "</figure>"
        for number, site in shown
    )
    converted = len(report.with_status("converted"))
    which = (
        ""
        if len(shown) == converted
        else f" Shown are {len(shown)} of {converted:,}: the first, the last, the worst, and some between."
    )
    text = (
        "What each norm of the original does to held-out tokens, before its weight and bias, and what stands in "
        "for it. A norm gives one x many outputs, since it knows the length of its token; an element-wise function "
        f"gives one in each channel.{which}"
    )
    return _section("Norm by norm", text, f'<ul class="legend">{legend}</ul>\n<div class="gallery">\n{gallery}\n</div>')


def _norms(report: Report, evidence: Evidence | None) -> str:
    if not report.sites:
        return _section("Norms", "No norm was found.", "")
    text = "Sort by a heading. The form is the spelling in which the norm was found."
    return _section("Norms", text, f'<div class="scroll">{sites_table(report, evidence)}</div>')


def _near_misses(report: Report) -> str:
    if not report.near_misses:
        return ""
    rows = [(breakable(miss.name), escape(miss.reason)) for miss in report.near_misses]
    text = "These looked like norms and are none, or could not be proved to be."
    return _section("Near misses", text, f'<div class="scroll">{table(("where", "why not"), rows, numbers=0)}</div>')


def _record(report: Report) -> str:
    rows = []
    if report.calibration is not None:
        c = report.calibration
        rows.append(("calibrated on", f"{escape(c.source)}: {c.samples:,} samples, {c.tokens:,} tokens"))
    if report.distillation is not None:
        run = report.distillation
        told = f"{run['steps']:,} steps on {run['tokens']:,} tokens, {run['train']} parameters"
        rows.append(("distilled", escape(told)))
    if report.folds.done:
        folded = sum(len(fold.sites) for fold in report.folds.done)
        rows.append(("folded exactly", f"{folded:,} norms; outputs moved by {report.folds.error or 0:.1g}"))
    for turned in report.rotations.lengths:
        told = f"{turned.directions} tell squared lengths to {turned.error_after:.3f} for {turned.error_before:.3f}"
        rows.append((f"rotated, {turned.channels:,} channels", told))
    for stream in report.rotations.done:
        told = f"{len(stream.sites):,} norms: error {stream.error_after:.3f} for {stream.error_before:.3f}"
        rows.append((f"rotated, {stream.channels:,} channels", told))
    if report.changed_initializers:
        rows.append(("weights changed", f"{len(report.changed_initializers):,}"))
    rows += [(f"seconds: {escape(step)}", f"{value:.1f}") for step, value in report.seconds.items()]
    if report.peak_memory_mib is not None:
        rows.append(("peak memory", f"{report.peak_memory_mib:,.0f} MiB"))
    button = '<p><button class="save" type="button">Save all numbers as JSON</button></p>'
    return _section("How it was made", "", f"{table(('', ''), rows, numbers=0)}\n{button}")

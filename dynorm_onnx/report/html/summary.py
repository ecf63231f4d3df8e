"""The head of the page: whether the model can be used, what was replaced, how good, how fast, what to be warned of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from html import escape

from dynorm_onnx.report.model import Report

Tile = tuple[str, str, str]


def summary(report: Report) -> str:
    """Tiles of numbers, then the warnings."""
    tiles = "\n".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>'
        for name, value, note in (*_replaced(report), *_quality(report), *_speed(report))
    )
    return f'<dl class="tiles">\n{tiles}\n</dl>{_warnings(report)}'


def verdict(report: Report) -> str:
    """What comes before all else; empty for a model that is usable, or was not validated, and has no alarms."""
    return _ruin(report) + _alarms(report)


def _alarms(report: Report) -> str:
    items = _items(report.alarms)
    return f'<div class="warnings" role="alert"><ul>{items}</ul></div>\n' if items else ""


def _ruin(report: Report) -> str:
    if report.verdict is None or report.verdict.usable:
        return ""
    reasons, advice = (_items(lines) for lines in (report.verdict.reasons, report.verdict.advice))
    tried = f"<p>To try:</p><ul>{advice}</ul>" if advice else ""
    head = f"<strong>This model is not usable</strong><ul>{reasons}</ul>"
    return f'<div class="verdict" role="alert">{head}{tried}</div>\n'


def _items(lines: tuple[str, ...]) -> str:
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def _replaced(report: Report) -> Iterator[Tile]:
    counts = Counter(site.status for site in report.sites)
    total = len(report.sites)
    if report.output is None:
        refused = counts["refused"]
        note = f"{refused} cannot be replaced" if refused else "all can be replaced"
        yield "norms found", f"{total:,}", note if total else ""
        return
    rest = [f"{counts[status]:,} {status}" for status in ("kept", "refused") if counts[status]]
    yield "norms replaced", f"{counts['converted']:,} of {total:,}", ", ".join(rest) or "none kept, none refused"


def _quality(report: Report) -> Iterator[Tile]:
    if report.validation is None:
        if report.output is not None:
            yield "quality", "not measured", "--no-validate"
        return
    quality = report.validation.quality
    if quality is None:
        worst = max(report.validation.outputs.items(), key=lambda item: item[1].relative_error, default=None)
        if worst is not None:
            name, error = worst
            yield "relative error", f"{error.relative_error:.3g}", f"of {name}, the output with the largest"
            if error.cosine is not None:
                yield "cosine to the original", f"{error.cosine:.4f}", f"mean; least {error.cosine_min:.4f}"
            if error.class_agreement is not None:
                yield "same class", f"{100 * error.class_agreement:.1f} %", f"of {report.validation.samples:,} samples"
        return
    note = f"half of the tokens at most {quality.kl_median:.3g}, 99 % at most {quality.kl_p99:.3g}"
    yield "KL to the original, nats", f"{quality.kl_mean:.4g}", note
    yield "same top-1 prediction", f"{100 * quality.top1_agreement:.1f} %", f"of {quality.tokens:,} held-out tokens"
    if quality.loss_original is not None and quality.loss_converted is not None:
        change = quality.loss_converted - quality.loss_original
        if math.isfinite(change):
            note = f"{quality.loss_original:.4f} → {quality.loss_converted:.4f}"
            yield "next-token loss, nats", f"{change:+.4f}", note


def _speed(report: Report) -> Iterator[Tile]:
    medians = {row.variant: row.median_ms for row in report.timing}
    fused = medians.get("original-fused")
    for variant, name in (("converted-kernels", "speed with our kernels"), ("converted", "speed without the library")):
        if fused and variant in medians:
            note = f"{medians[variant]:.3g} ms; original at its best {fused:.3g} ms"
            yield name, f"{fused / medians[variant]:.2f} ×", note


def _warnings(report: Report) -> str:
    if not report.warnings:
        return ""
    items = _items(report.warnings)
    return f'\n<div class="warnings" role="note"><strong>To know before using it</strong><ul>{items}</ul></div>'

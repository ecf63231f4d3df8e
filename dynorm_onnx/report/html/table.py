"""Tables of the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from dynorm_onnx.report.evidence import Evidence
from dynorm_onnx.report.model import Report, SiteReport

_COLUMNS = (
    "#",
    "norm",
    "kind",
    "form",
    "channels",
    "coupled",
    "type",
    "status",
    "fit error",
    "held-out error",
    "parameters",
)
_NUMBERS = {"#", "channels", "coupled", "fit error", "held-out error"}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 99) -> str:
    """A plain table of cells that are HTML already; the last `numbers` columns, never the first, are numbers."""
    first_number = max(1, len(columns) - numbers) if numbers else len(columns)

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="number">{cell}</{tag}>' if place >= first_number else f"<{tag}>{cell}</{tag}>"
            for place, cell in enumerate(row)
        )

    head = f"<thead><tr>{cells('th', columns)}</tr></thead>" if any(columns) else ""
    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table>{head}<tbody>\n{body}\n</tbody></table>"


def breakable(name: str) -> str:
    """A dotted name as HTML that may be broken after its dots, slashes and underscores."""
    return re.sub(r"([./_])(?=\w)", r"\1<wbr>", escape(name))


def site_anchors(report: Report) -> dict[str, str]:
    """The id of every site's picture."""
    return {site.name: f"norm-{number}" for number, site in enumerate(report.sites, 1)}


def sites_table(report: Report, evidence: Evidence | None) -> str:
    """All sites, sortable: `data-value` holds what a column is sorted by where that is not the text itself."""
    used = _used(report, evidence)
    head = "".join(
        f'<th{_css(column)} scope="col"><button type="button">{escape(column)}</button></th>' for column in used
    )
    anchors = site_anchors(report)
    pictures = evidence.pictures if evidence else {}
    errors = evidence.errors if evidence else {}
    rows = []
    for number, site in enumerate(report.sites, 1):
        name, shown = escape(site.name), breakable(site.name)
        if site.name in pictures:
            shown = f'<a href="#{anchors[site.name]}">{shown}</a>'
        cells = {
            "#": _number(number),
            "norm": f'<td class="name" data-value="{name}">{shown}</td>',
            "kind": f"<td>{escape(site.kind)}</td>",
            "form": f"<td>{escape(site.form)}</td>",
            "channels": _number(site.channels),
            "coupled": _number(site.coupled),
            "type": f"<td>{escape((site.dtype or '?').lower())}</td>",
            "status": _status(site),
            "fit error": _number(site.error, "{:.3f}"),
            "held-out error": _number(errors.get(site.name), "{:.3f}"),
            "parameters": _parameters(site),
        }
        rows.append(f"<tr>{''.join(cells[column] for column in used)}</tr>")
    body = "\n".join(rows)
    return f'<table class="full sortable"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'


def _used(report: Report, evidence: Evidence | None) -> list[str]:
    """The columns that have anything in them: nothing was fitted in a dry run."""
    empty: set[str] = set()
    if not (evidence and evidence.errors):
        empty.add("held-out error")
    if not any(site.coupled for site in report.sites):
        empty.add("coupled")
    if all(site.parameters is None for site in report.sites):
        empty |= {"fit error", "parameters"}
    return [column for column in _COLUMNS if column not in empty]


def _css(column: str) -> str:
    return ' class="number"' if column in _NUMBERS else ""


def _number(value: float | None, form: str = "{}") -> str:
    if value is None:
        return '<td class="number" data-value=""></td>'
    return f'<td class="number" data-value="{value!r}">{form.format(value)}</td>'


def _status(site: SiteReport) -> str:
    reason = f": {escape(site.reason)}" if site.reason else ""
    return f'<td class="status-{site.status}" data-value="{site.status}">{site.status}{reason}</td>'


def _parameters(site: SiteReport) -> str:
    """The function's own parameters: the median over channels, and the range where there is one."""
    parameters = site.as_dict()["parameters"] or {}
    own = {name: spread for name, spread in parameters.items() if name not in ("weight", "bias")}
    first = next(iter(own.values()))["median"] if own else ""
    told = "; ".join(
        f"{escape(name)} {spread['median']:.3g}"
        + (f" ({spread['min']:.3g} to {spread['max']:.3g})" if spread["min"] < spread["max"] else "")
        for name, spread in own.items()
    )
    return f'<td data-value="{first}">{told}</td>'

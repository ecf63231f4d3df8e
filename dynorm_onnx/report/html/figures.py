"""The figures of the page, each a function from a part of the report to SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.report.evidence import Picture
from dynorm_onnx.report.html.svg import COLOURS, inline_svg, new_figure
from dynorm_onnx.report.model import SiteReport
from dynorm_onnx.runtime.measures import KL_EDGES, TokenQuality
from dynorm_onnx.runtime.timing import Timing

PANEL = (3.7, 2.5)  # inches: half of a page, a whole phone
WIDE = (7.9, 2.3)
_HEAVY_TAIL = 6.0  # the largest |x| over the 99 % quantile, above which x is drawn on an asinh scale
_MOST_BARS, _MOST_TICKS = 80, 32


def site_picture(site: str, picture: Picture, number: int) -> str:
    """What the norm does to held-out tokens, and the functions that follow it."""
    figure = new_figure(*PANEL)
    axes = figure.subplots()
    inner, outer = ~picture.outlier, picture.outlier
    axes.plot(picture.x[inner], picture.y[inner], "o", color=COLOURS["point"], ms=2.4, mew=0, alpha=0.6)
    axes.plot(picture.x[outer], picture.y[outer], "D", color=COLOURS["outlier"], ms=3, mew=0, alpha=0.8)
    axes.plot(picture.x[outer], picture.replaced[outer], "D", color=COLOURS["new"], ms=2.6, mew=0.7, fillstyle="none")
    low, middle, high = picture.band
    axes.fill_between(picture.grid, low, high, color=COLOURS["new"], alpha=0.25, linewidth=0)
    axes.plot(picture.grid, middle, color=COLOURS["new"], lw=1.4)
    reach = float(np.abs(picture.x).max())
    usual = float(np.quantile(np.abs(picture.x[inner]), 0.99)) if inner.any() else reach
    line = np.sinh(np.linspace(-1, 1, 161) * np.arcsinh(20)) / 20 * reach
    line = line[(line >= picture.x.min()) & (line <= picture.x.max())]
    for name, dashes in (("dyisru", (4, 1.5)), ("dyt", (1, 1))):
        y = picture.scale * REGISTRY[name].core(line, **picture.curves[name])
        axes.plot(line, y, color=COLOURS[name], lw=1.1, dashes=dashes)
    stretched = reach > _HEAVY_TAIL * usual
    if stretched:
        _stretch(axes, usual / 2, picture.x)
    shown = np.concatenate([picture.y, middle[np.isfinite(middle)]])
    room = 0.06 * np.ptp(shown)
    axes.set_ylim(shown.min() - room, shown.max() + room)
    axes.grid(True)
    axes.set_xlabel("input x" + (" (stretched around 0)" if stretched else ""))
    axes.set_ylabel("output, without weight and bias")
    return inline_svg(figure, f"s{number}", f"norm output against input at {escape(site)}")


def _stretch(axes: Any, linear: float, x: np.ndarray) -> None:
    """An asinh scale along x, straight within +-linear, with ticks at 0 and powers of ten that do not collide."""
    axes.set_xscale("asinh", linear_width=linear)
    first = np.ceil(np.log10(linear))
    powers = 10.0 ** np.arange(first, np.floor(np.log10(np.abs(x).max())) + 1)
    ticks = np.concatenate([-powers[::-1], [0.0], powers])
    axes.set_xticks(ticks[(ticks >= 1.3 * x.min()) & (ticks <= 1.3 * x.max())])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="x", which="minor", bottom=False)


def damage(sites: Sequence[SiteReport], held_out: dict[str, float]) -> str:
    """The error of every site along the depth: bars of the fit, dots of the converted model on held-out tokens."""
    figure = new_figure(*WIDE)
    axes = figure.subplots()
    place = np.arange(1, len(sites) + 1)
    fit = np.array([np.nan if site.error is None else site.error for site in sites])
    now = np.array([held_out.get(site.name, np.nan) for site in sites])
    few = len(sites) <= _MOST_BARS
    if few:
        axes.bar(place, fit, color=COLOURS["new"], alpha=0.45, width=0.7, label="fit, on the calibration tokens")
    else:
        axes.fill_between(place, np.nan_to_num(fit), step="mid", color=COLOURS["new"], alpha=0.45, lw=0,
                          label="fit, on the calibration tokens")  # fmt: skip
    if np.isfinite(now).any():
        axes.plot(place, now, "o", ms=3 if few else 1.2, mew=0, color=COLOURS["ink"],
                  label="in the converted model, on held-out tokens")  # fmt: skip
    others = place[np.isnan(fit)]
    if len(others):
        axes.plot(others, np.zeros(len(others)), "|", ms=7, color=COLOURS["outlier"], clip_on=False,
                  label="not replaced")  # fmt: skip
    axes.set_xlim(0.3, len(sites) + 0.7)
    axes.set_ylim(bottom=0)
    if len(sites) <= _MOST_TICKS:
        axes.set_xticks(place)
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("norm, in the order in which the model runs them")
    axes.set_ylabel("relative error of its output")
    axes.grid(True, axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    return inline_svg(figure, "damage", "relative error of every norm's output along the depth")


def kl_tail(quality: TokenQuality) -> str:
    """The share of tokens whose KL is at least so much, both axes logarithmic."""
    figure = new_figure(*PANEL)
    axes = figure.subplots()
    counts = np.array(quality.kl_histogram)
    beyond = np.append(counts[::-1].cumsum()[::-1], 0) / counts.sum()
    low = max(float(np.searchsorted(1 - beyond, 0.005)) - 1, 0)
    filled = beyond[int(low) :] > 0
    edges, shares = KL_EDGES[int(low) :][filled], beyond[int(low) :][filled]
    worst = quality.worst.kl
    if edges[-1] < worst < np.inf:
        edges, shares = np.append(edges, worst), np.append(shares, 1 / quality.tokens)
    axes.fill_between(edges, shares, 0.3 / quality.tokens, color=COLOURS["new"], alpha=0.2, lw=0)
    axes.plot(edges, shares, color=COLOURS["new"], lw=1.4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.5 / quality.tokens, 1.6)
    for value, label in ((quality.kl_mean, "mean"), (quality.kl_p99, "99 %")):
        if np.isfinite(value) and value > 0:
            axes.axvline(value, color=COLOURS["muted"], lw=0.8, dashes=(3, 2))
            axes.annotate(f"{label} {value:.2g}", (value, 1.6), xytext=(-2, -3), textcoords="offset points",
                          ha="right", va="top", rotation=90, fontsize=7)  # fmt: skip
    if 0 < worst < np.inf:
        axes.plot([worst], [1 / quality.tokens], "D", ms=4, mew=0, color=COLOURS["outlier"])
        axes.annotate(f"worst {worst:.3g}", (worst, 1 / quality.tokens), xytext=(-5, 3), ha="right",
                      textcoords="offset points", fontsize=7)  # fmt: skip
    axes.grid(True)
    axes.set_xlabel("KL to the original, nats")
    axes.set_ylabel("share of tokens at or above")
    return inline_svg(figure, "tail", "share of tokens over the KL that they reach at least")


def kl_histogram(quality: TokenQuality) -> str:
    """Tokens by KL, the axis logarithmic."""
    figure = new_figure(*PANEL)
    axes = figure.subplots()
    counts = np.array(quality.kl_histogram)
    total = counts.cumsum() / counts.sum()
    first, last = int(np.searchsorted(total, 0.005)), int(np.flatnonzero(counts).max())
    shown = slice(max(first - 1, 0), last + 1)
    axes.bar(KL_EDGES[:-1][shown], counts[shown] / counts.sum(), width=np.diff(KL_EDGES)[shown], align="edge",
             color=COLOURS["new"], alpha=0.6, linewidth=0)  # fmt: skip
    axes.set_xscale("log")
    if quality.kl_mean > 0 and np.isfinite(quality.kl_mean):
        axes.axvline(quality.kl_mean, color=COLOURS["muted"], lw=0.8, dashes=(3, 2))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.grid(True, axis="y")
    axes.set_xlabel("KL to the original, nats (dashes: the mean)")
    axes.set_ylabel("share of tokens")
    return inline_svg(figure, "spread", "histogram of the KL of single tokens")


def timing(rows: Sequence[Timing]) -> str:
    """The median of every variant as a bar, its 10 and 90 % quantiles as a whisker."""
    figure = new_figure(PANEL[0], 0.75 + 0.34 * len(rows))
    axes = figure.subplots()
    labels = [_variant(row, rows) for row in rows]
    colours = [COLOURS["new"] if row.variant.startswith("converted") else COLOURS["muted"] for row in rows]
    whiskers = [[row.median_ms - row.p10_ms for row in rows], [row.p90_ms - row.median_ms for row in rows]]
    axes.barh(labels, [row.median_ms for row in rows], xerr=whiskers, color=colours, alpha=0.6, height=0.6,
              error_kw={"ecolor": COLOURS["ink"], "elinewidth": 1, "capsize": 2.5})  # fmt: skip
    room = max(row.p90_ms for row in rows)
    for place, row in enumerate(rows):
        axes.annotate(f"{row.median_ms:.3g}", (row.p90_ms, place), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=7)  # fmt: skip
    axes.set_xlim(0, 1.15 * room)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.set_xlabel("ms for one batch: median, 10 to 90 %")
    return inline_svg(figure, "timing", "time of the variants")


def _variant(row: Timing, rows: Sequence[Timing]) -> str:
    several = len({other.provider for other in rows}) > 1
    return f"{row.variant}, {row.provider}" if several else row.variant


def legend_entries(to: str) -> list[tuple[str, str, str]]:
    """(CSS variable, shape, words) of what the site pictures show."""
    return [
        ("point", "dot", "the norm, sampled elements"),
        ("outlier", "diamond", "its outliers (the largest 0.1 %)"),
        ("new", "hollow", f"what {REGISTRY[to].op_type} gives for those"),
        ("new", "band", f"{REGISTRY[to].op_type} as put in: median, 10 to 90 % of the elements"),
        ("dyisru", "dash", "DyISRU with one beta, best fit"),
        ("dyt", "dots", "DyT with one alpha, best fit"),
    ]

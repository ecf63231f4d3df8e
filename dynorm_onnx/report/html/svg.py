"""matplotlib figures as SVG inside a page: its fonts, its colours in light and dark, small."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from typing import Any

from dynorm_onnx.plotting import require_matplotlib

# matplotlib wants colours, the page wants to change them: each stands for the CSS variable of its name.
COLOURS = {
    "ink": "#010101",
    "line": "#020202",
    "paper": "#030303",
    "point": "#040404",
    "outlier": "#050505",
    "new": "#060606",
    "dyisru": "#070707",
    "dyt": "#080808",
    "muted": "#090909",
}

_STYLE = {
    "svg.fonttype": "none",  # text stays text: the reader's fonts, selectable
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.4,
    "grid.alpha": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "path.simplify": True,
}

_DECIMALS = re.compile(r"-?\d+\.\d{3,}")


def style() -> AbstractContextManager[None]:
    """matplotlib's settings for figures of the page; in force while they are made and drawn."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)  # type: ignore[no-any-return]


def new_figure(width: float, height: float) -> Any:
    """An empty figure, inches."""
    return require_matplotlib("--report")(figsize=(width, height), layout="constrained")


def inline_svg(figure: Any, name: str, description: str) -> str:
    """The figure as an <svg> element; `name`, unique in the page, keeps the ids of its parts apart."""
    import matplotlib

    buffer = io.StringIO()
    metadata = {key: None for key in ("Creator", "Date", "Format", "Type")}
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"<[^>]+>", lambda tag: _DECIMALS.sub(_shortened, tag[0]), text)  # coordinates, not words
    text = _with_own_ids(text, name)
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r">\s+<", "><", text)
    opening = f'<svg role="img" aria-label="{description}"'
    return re.sub(r'<svg(?: width="[^"]*"| height="[^"]*"|(?= viewBox))*', opening, text, count=1)


def _shortened(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def _with_own_ids(text: str, name: str) -> str:
    """Ids that are referred to get the figure's name, all others ("axes_1", "patch_2") go."""
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    referred = {one or other for one, other in used}

    def rename(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in referred else ""

    text = re.sub(r' id="([^"]+)"', rename, text)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)

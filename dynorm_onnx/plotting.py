"""matplotlib, which only the [report] extra installs: asked for before the work begins, not after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynorm_onnx.errors import UsageError

DOTS_PER_INCH = 120


def require_matplotlib(knob: str) -> Any:
    """matplotlib's Figure class; raises UsageError, naming the knob, where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # without pyplot there is no window and no global state
    except ImportError as error:
        raise UsageError(f"{knob} needs matplotlib: `pip install dynorm-onnx[report]`") from error
    return Figure


def save_figure(figure: Any, path: Path, knob: str) -> None:
    """Write a figure; raises UsageError where the folder or the kind of image is not to be had."""
    try:
        figure.savefig(path, dpi=DOTS_PER_INCH)
    except (OSError, ValueError) as error:  # ValueError: no such image format
        raise UsageError(f"{knob} {path}: cannot be written: {error}") from error

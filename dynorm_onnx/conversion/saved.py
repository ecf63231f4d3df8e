"""The report told, then model and page moved into their place together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from dynorm_onnx.report import Report
from dynorm_onnx.report.evidence import Evidence
from dynorm_onnx.report.html import staged_html


def put_in_place(
    report: Report,
    page: Path | None,
    ready: Callable[[Report], object],
    evidence: Evidence | None = None,
    place_model: Callable[[], None] = lambda: None,
) -> Report:
    """The report, told; then the model and the `page`, both written by then, under their names.

    Where telling fails neither is there. Raises UsageError where one of them cannot be written.
    """
    with contextlib.ExitStack() as files:
        place_page = files.enter_context(staged_html(report, page, evidence)) if page is not None else None
        ready(report)
        place_model()
        if place_page is not None:
            place_page()
    return report

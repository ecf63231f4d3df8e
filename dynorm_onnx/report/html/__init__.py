"""`--report OUT.html`: one file, with nothing to fetch, that a person can judge a conversion by."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dynorm_onnx.errors import UsageError
from dynorm_onnx.plotting import require_matplotlib
from dynorm_onnx.report.evidence import Evidence
from dynorm_onnx.report.html.page import render
from dynorm_onnx.report.model import Report

__all__ = ["render", "require_html", "write_html"]


def require_html(path: Path) -> None:
    """Raises UsageError where write_html() could not write: to be asked before hours of work, not after them."""
    require_matplotlib("--report")
    if path.is_dir():
        raise UsageError(f"--report {path}: is a folder; name a file")
    folder = path.absolute().parent
    if not os.access(folder, os.W_OK):
        problem = "is read-only" if folder.is_dir() else "is not there"
        raise UsageError(f"--report {path}: the folder {folder} {problem}")


def write_html(report: Report, path: Path, evidence: Evidence | None = None) -> None:
    """Write the page to `path`, whole or not at all. Raises UsageError where that cannot be done."""
    page = render(report, evidence)
    handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise UsageError(f"--report {path}: cannot be written: {error.strerror or error}") from error

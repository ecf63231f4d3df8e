"""`--report OUT.html`: one file, with nothing to fetch, that a person can judge a conversion by."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from dynorm_onnx.errors import UsageError
from dynorm_onnx.plotting import require_matplotlib
from dynorm_onnx.report.evidence import Evidence
from dynorm_onnx.report.html.page import render
from dynorm_onnx.report.model import Report

__all__ = ["render", "require_html", "staged_html", "write_html"]


def require_html(path: Path) -> None:
    """Raises UsageError where write_html() could not write: to be asked before hours of work, not after them."""
    require_matplotlib("--report")
    if os.path.isdir(path):  # also of a name that is too long for any file
        raise UsageError(f"--report {path}: is a folder; name a file")
    folder = path.absolute().parent
    if not os.access(folder, os.W_OK):
        problem = "is read-only" if folder.is_dir() else "is not there"
        raise UsageError(f"--report {path}: the folder {folder} {problem}")
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:  # a name that no file can have
        raise UsageError(f"--report {path}: cannot be written: {error.strerror or error}") from error


def write_html(report: Report, path: Path, evidence: Evidence | None = None) -> None:
    """Write the page to `path`, whole or not at all. Raises UsageError where that cannot be done."""
    with staged_html(report, path, evidence) as place:
        place()


@contextlib.contextmanager
def staged_html(report: Report, path: Path, evidence: Evidence | None = None) -> Iterator[Callable[[], None]]:
    """The page under another name beside `path`, and what moves it there. Raises UsageError as write_html() does."""
    page = render(report, evidence)
    with _cannot_be_written(path):
        handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    temporary = Path(name)

    def place() -> None:
        with _cannot_be_written(path):
            temporary.replace(path)

    try:
        # A file's name may hold bytes that no encoding has.
        with _cannot_be_written(path), os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(page)
            temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
        yield place
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _cannot_be_written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"--report {path}: cannot be written: {error.strerror or error}") from error

"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dynorm_onnx.errors import UsageError


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `target` when the block ends well, and vanishes when it does not.

    Parents are made. Raises UsageError if there is something at `target` already, or nothing can be written there.
    """
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"{target}: is there already; choose another output or remove it.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror or error}.") from error
    try:
        working.chmod(0o755)  # servers run as other users; mkdtemp lets nobody else in
        yield working
        os.replace(working, target)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)

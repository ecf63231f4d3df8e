"""What is dear to build, and not changed by those who read it, is built by one of pytest-xdist's workers for all."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], T]) -> T:
    """What `build` makes of an empty folder, where the files stay that it writes; of whoever comes first."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return build(factory.mktemp(name))
    fcntl = pytest.importorskip("fcntl")
    folder = factory.getbasetemp().parent / name  # each worker's own folder is in that of the run
    kept = folder / "built.pickle"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            folder.mkdir()
            kept.write_bytes(pickle.dumps(build(folder)))
    return pickle.loads(kept.read_bytes())

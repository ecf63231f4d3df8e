"""Builds library and native programs under AddressSanitizer and UndefinedBehaviorSanitizer, and runs them.

The build is kept: it takes minutes, and again only what has changed since.
"""

from __future__ import annotations

import shutil

import pytest

from tests.custom_ops.sanitize import ROOT, Build, run

fcntl = pytest.importorskip("fcntl", reason="a build is shared under a lock of files: not on Windows")


@pytest.fixture(scope="module")
def build() -> Build:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    made = Build(ROOT / "build" / "sanitized", "address")
    made.folder.mkdir(parents=True, exist_ok=True)
    with (made.folder / "lock").open("w") as lock:  # of two workers with tests of this file one builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        made.make()
    return made


@pytest.mark.slow
def test_kernels_under_the_sanitizers(build: Build) -> None:
    """Every instruction set of this machine, function, type and form; shapes, alignments, shared buffers; the range."""
    ended, said = run(build.kernels)
    assert ended, said
    assert said == "0 failures"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("concurrent", 50, 2, 2), ("sessions", 20)])
def test_sessions_under_the_sanitizers(build: Build, arguments: tuple[object, ...]) -> None:
    """The library in ONNX Runtime: no step beyond a tensor, and no leak behind the last session."""
    ended, said = run(build.load(*arguments))
    assert ended, said

"""The same model, data and seed give the same bytes, on one processor and on all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import threadpoolctl

from tests.calibration.rotation import planted
from tests.shipped import MODEL, TEXT

OPTIONS = ("--samples", "6", "--max-length", "48", "--no-time", "--quiet")

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are pinned: Linux only")


def processors() -> set[int]:
    """All that may be used: a worker of pytest-xdist itself has its share."""
    own = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        return os.sched_getaffinity(0)
    finally:
        os.sched_setaffinity(0, own)


def environment(options: tuple[str, ...]) -> dict[str, str]:
    """OpenBLAS's kernels for AVX-512 round alike with any number of threads, those for AVX2 only with a fixed one: what
    solves for matrices gives the same bytes there where that number is given."""
    blas = [found for found in threadpoolctl.threadpool_info() if found["internal_api"] == "openblas"]
    alike = any("skylake" in found["architecture"].lower() for found in blas)
    return {**os.environ, **({} if alike or "reconstruct" not in options else {"OPENBLAS_NUM_THREADS": "1"})}


def converted(model: Path, output: Path, pinned: set[int], *options: str) -> bytes:
    command = [sys.executable, "-m", "dynorm_onnx.convert", str(model), "-o", str(output), *OPTIONS, *options]
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        env=environment(options),
        preexec_fn=lambda: os.sched_setaffinity(0, pinned),
    )
    return output.read_bytes()


def changes_nothing(model: Path, folder: Path, *options: str) -> None:
    everywhere = processors()  # if there is one: the same twice
    one = converted(model, folder / "one.onnx", {min(everywhere)}, *options)
    assert converted(model, folder / "all.onnx", everywhere, *options) == one


@pytest.mark.parametrize("options", [
    ("--method", "reconstruct", "--no-rotate", "--data", str(TEXT)),
    ("--to", "dyt", "--method", "fit", "--no-rotate", "--data", str(TEXT)),
    ("--to", "rmsnorm", "--data", "random"),
], ids=" ".join)  # fmt: skip
def test_threads_change_no_byte(options: tuple[str, ...], tmp_path: Path) -> None:
    changes_nothing(MODEL, tmp_path, *options)


def test_threads_change_no_rotation(tmp_path: Path) -> None:
    onnx.save(planted.model(), tmp_path / "model.onnx")
    changes_nothing(tmp_path / "model.onnx", tmp_path, "--method", "fit", "--data", "random")

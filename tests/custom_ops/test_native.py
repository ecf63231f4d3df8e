"""Builds the native test program under AddressSanitizer and UndefinedBehaviorSanitizer, and runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "custom_ops"


@pytest.fixture(scope="module")
def build_tool() -> str:
    found = shutil.which("cmake")
    if found is None:
        pytest.skip("cmake is not installed")
    return found


@pytest.mark.slow
def test_kernels_under_the_sanitizers(build_tool: str, tmp_path: Path) -> None:
    """Every instruction set of this machine, function, type and form; shapes, alignments, shared buffers; the range."""
    subprocess.run(
        [build_tool, "-S", str(SOURCES), "-B", str(tmp_path), "-DDYNORM_SANITIZE=ON"], check=True, capture_output=True
    )
    subprocess.run([build_tool, "--build", str(tmp_path), "--parallel", "2"], check=True, capture_output=True)
    # Preloaded libraries (allocators, profilers) would come before the sanitizer's own.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    ran = subprocess.run([str(tmp_path / "test_kernels")], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "avx2 DyISRU float32" in ran.stdout or "portable DyISRU float32" in ran.stdout

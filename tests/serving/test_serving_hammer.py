"""Servers under everything at once, for some seconds; for minutes: python -m tests.serving.hammer (docs/limits.md)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import server

ROOT = Path(__file__).parents[2]
MISSING = {
    "triton": server.missing(),
    "genai": None
    if importlib.util.find_spec("onnxruntime_genai")
    else "onnxruntime-genai is not installed: pip install 'dynorm-onnx[serving]'",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MISSING)
def test_nothing_is_lost_mixed_up_or_left_behind(kind: str, converted: Path) -> None:
    if MISSING[kind]:
        pytest.skip(MISSING[kind])
    command = [sys.executable, "-m", "tests.serving.hammer", kind, "--seconds", "12", "--mebibytes", "8"]
    made = subprocess.run(  # of its own: a crash of the library must not be ours
        [*command, "--model", str(converted)], capture_output=True, text=True, timeout=400, cwd=ROOT, env=os.environ
    )
    assert made.returncode == 0, made.stdout[-6000:] + made.stderr[-2000:]
    assert " requests in " in made.stdout and "FAULT" not in made.stdout

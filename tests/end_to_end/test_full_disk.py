"""Output that cannot be written: a sentence, and what was there before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shipped import MODEL

resource = pytest.importorskip("resource", reason="limits of a process are POSIX only")
OPTIONS = ("--to", "rmsnorm", "--no-validate", "--no-time", "-q")
COMMAND = (sys.executable, "-m", "dynorm_onnx.convert", str(MODEL), *OPTIONS)
ROOM = 1 << 20
"""Bytes that a file may have: less than the model has."""


def convert(output: Path, **how: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, "-o", str(output)], capture_output=True, text=True, **how)  # type: ignore[call-overload]


def test_no_room_for_the_model(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    output.write_bytes(b"what was there")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))

    ended = convert(output, preexec_fn=limit)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert str(output) in ended.stderr and "File too large" in ended.stderr
    assert output.read_bytes() == b"what was there" and os.listdir(tmp_path) == ["model.onnx"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    ended = convert(tmp_path / "model.onnx")
    tmp_path.chmod(0o700)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert f"{tmp_path} is read-only" in ended.stderr
    assert not os.listdir(tmp_path)

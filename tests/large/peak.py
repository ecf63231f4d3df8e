"""A conversion in a process of its own, and the most memory that it held: its own, and pages of files."""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EVERY = 0.005  # seconds between looks at the process


@dataclasses.dataclass(frozen=True)
class Peak:
    """How a conversion ended, and the largest of what was seen of it, in bytes: `anonymous` is its own memory, `file`
    pages of files that it has mapped, `data` the address space that a limit of data counts."""

    code: int
    stderr: str
    anonymous: int
    file: int
    data: int
    seconds: float
    processor_seconds: float


def convert(model: Path, *options: str, data_limit: int | None = None) -> Peak:
    """`python -m dynorm_onnx.convert MODEL OPTIONS`, with at most `data_limit` bytes of private memory (ulimit -d)."""

    def limited() -> None:
        if data_limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (data_limit, data_limit))

    command = [sys.executable, "-m", "dynorm_onnx.convert", str(model), *options]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, preexec_fn=limited)
        seen = {"RssAnon": 0, "RssFile": 0, "VmData": 0}
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            for name, size in _status(process.pid):
                if name in seen:
                    seen[name] = max(seen[name], size)
            time.sleep(EVERY)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        told = errors.read().decode(errors="replace")
    taken = time.perf_counter() - started
    processor = usage.ru_utime + usage.ru_stime
    return Peak(process.returncode, told, seen["RssAnon"], seen["RssFile"], seen["VmData"], taken, processor)


def _status(pid: int) -> list[tuple[str, int]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = (line.replace(":", " ").split() for line in lines)
    return [(field[0], int(field[1]) << 10) for field in fields if len(field) == 3 and field[2] == "kB"]

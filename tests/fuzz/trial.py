"""One file given to the command line, in a process of its own with bounds of time and memory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from dynorm_onnx.convert import main

SECONDS = 180
MEMORY = 6 << 30
"""Bytes of address space, most of which libraries reserve and never touch."""
SAID = (0, 2, 3, 4)
"""Exit codes that the command line promises."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a conversion ended: its exit code, or the signal; how long it took; and what it wrote to stderr."""

    code: int | None
    signal: str | None
    seconds: float
    stderr: str

    @property
    def fault(self) -> str | None:
        """What should not have happened, in a line; None where the file was converted or refused in a sentence."""
        if self.signal is not None:
            return f"{self.signal} after {self.seconds:.0f} s"
        if self.code not in SAID:
            return f"exit {self.code}: {self.stderr.strip().splitlines()[-1] if self.stderr.strip() else ''}"
        return "a traceback" if "Traceback" in self.stderr else None


def convert(path: Path, *options: str) -> Outcome:
    """`python -m dynorm_onnx.convert PATH OPTIONS`, in a copy of this process."""
    log, started = path.with_suffix(".log"), time.perf_counter()
    child = os.fork()
    if child == 0:
        os._exit(_run(path, log, options))
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it has started in turn
    ended_by = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else None
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    return Outcome(code, ended_by, time.perf_counter() - started, log.read_text(errors="replace"))


def _run(path: Path, log: Path, options: tuple[str, ...]) -> int:
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.alarm(SECONDS)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        return main([str(path), "-o", str(path.with_suffix(".out.onnx")), *options])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()

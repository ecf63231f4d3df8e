"""What may end the process, run in a copy of it: ONNX Runtime crashes on some files, and then nobody would say why."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable

from dynorm_onnx.errors import ModelError
from dynorm_onnx.runtime.library import onnxruntime


def require_no_crash(what: str, work: Callable[[], object]) -> None:
    """Does `work` in a copy of this process, whose memory and files are not this one's, and waits for it.

    Raises ModelError, saying that it was `what`, where a signal ended the copy. Whatever else becomes of it is nobody's
    concern here: the same done in this process says it. Nothing is done where processes cannot be copied (Windows).
    """
    if (ended_by := _signal_of(work)) is not None:
        reason = "out of memory?" if ended_by == "SIGKILL" else "a fault of its own"
        raise ModelError(f"ONNX Runtime {onnxruntime().__version__} crashes ({ended_by}; {reason}) {what}")


def _signal_of(work: Callable[[], object]) -> str | None:
    """The name of the signal that ended a copy of the process in which work() was done, if one did."""
    if not hasattr(os, "fork"):
        return None
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: of them, none is in ONNX Runtime
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            _be_silent()
            work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else None


def _be_silent() -> None:
    """Nothing is written to the terminal, and no memory to a file."""
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)

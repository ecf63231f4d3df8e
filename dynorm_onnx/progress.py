"""How long-running steps tell how far they are: a callable, so that no step knows of bars or terminals."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator

# (step, done, total): "calibrate", 3, 13. total is 0 where nobody knows.
Progress = Callable[[str, int, int], None]


def no_progress(step: str, done: int, total: int) -> None:
    """Tell nobody."""


class StepClock:
    """Wall seconds of every named step, in the order they were first entered."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @property
    def total(self) -> float:
        """The seconds of all steps that have ended."""
        return sum(self.seconds.values())

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Time a step; yields its progress callable (done, total). A step that tells nothing ends as 1 of 1."""
        self._progress(name, 0, 0)
        started = time.perf_counter()
        last = (1, 1)

        def advance(done: int, total: int) -> None:
            nonlocal last
            last = (done, total)
            self._progress(name, done, total)

        try:
            yield advance
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self._progress(name, *last)


def peak_memory_mib() -> float:
    """The most memory that this process has held at once, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024  # macOS counts bytes

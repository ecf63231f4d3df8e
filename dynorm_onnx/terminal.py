"""What the command lines write on: streams that take any text, and the progress of long steps on stderr."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from dynorm_onnx.progress import Progress, no_progress

NARROWEST = 110
"""Columns of a table that goes to a file or a pipe, where there is no terminal to ask."""

EVERY = 10.0
"""Seconds between lines of progress where stderr is no terminal."""

UNITS = {"calibrate": "norms and layers", "distil": "steps", "data": "tokens", "validate": "runs"}
"""What the steps count, where a person would ask."""


def use_safe_streams() -> None:
    """Lets stdout and stderr take characters that their encoding lacks, as question marks: names of models and files
    may hold any, and the work must not be lost when it is told of."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def table_console() -> Console:
    """stdout, wide enough for a table where it is no terminal."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        return Console(width=NARROWEST)
    return console


def log_handler(console: Console) -> logging.Handler:
    """One for logging.basicConfig(): in columns on a terminal, elsewhere a line for each message, however long."""
    return RichHandler(console=console) if console.is_terminal else logging.StreamHandler(console.file)


def print_error(console: Console, text: str) -> None:
    """A sentence in red, as it is: square brackets are no markup, and lines are not broken."""
    console.print(Text(text, style="red"), soft_wrap=True)


@contextmanager
def shown_progress(console: Console, *, quiet: bool) -> Iterator[Progress]:
    """A bar per step on a terminal, elsewhere lines; nothing if quiet."""
    if quiet:
        yield no_progress
    elif console.is_terminal:
        with _bars(console) as progress:
            yield progress
    else:
        with ProgressLines(lambda line: print(line, file=console.file, flush=True)) as lines:
            yield lines.tell


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    columns: tuple[Any, ...] = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def advance(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=None)
            elif total and bar.tasks[tasks[step]].total not in (None, total):  # another part, with a pace of its own
                bar.reset(tasks[step])
            bar.update(tasks[step], completed=done, total=total or None)

        yield advance


class ProgressLines:
    """Lines of progress for a log: when a step begins and ends, and every `every` seconds between.

    The lines between come by a thread of its own, for a step may be long in one call of ONNX Runtime.
    """

    def __init__(self, write: Callable[[str], None], every: float = EVERY) -> None:
        self._write, self._every = write, every
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._step: str | None = None
        self._begun = self._part_begun = 0.0  # of a step, and of that part of it that has the present total
        self._told = 0.0  # when the last was heard of it: there the next part begins
        self._done, self._total = 0, 0

    def __enter__(self) -> ProgressLines:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if kind is None:  # a step that failed did not end
            self._end_step()

    def tell(self, step: str, done: int, total: int) -> None:
        """The Progress; (step, 0, 0) begins a step anew, as StepClock does."""
        with self._lock:
            if step != self._step or total == 0:
                self._end_step()
                self._step = step
                self._begun = self._part_begun = self._told = time.monotonic()
                self._write(f"{step}: begins")
            elif total != self._total:
                self._part_begun = self._told
            self._done, self._total, self._told = done, total, time.monotonic()

    def _end_step(self) -> None:
        if self._step is not None:
            self._write(f"{self._step}: done in {_duration(time.monotonic() - self._begun)}")
            self._step = None

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            with self._lock:
                if self._step is not None:
                    self._write(self._line(time.monotonic()))

    def _line(self, now: float) -> str:
        so_far = f"{_duration(now - self._begun)} so far"
        if not 0 < self._done <= self._total:
            return f"{self._step}: {so_far}"
        unit = UNITS.get(self._step or "", "")
        left = _duration((now - self._part_begun) * (self._total - self._done) / self._done)
        return f"{self._step}: {self._done:,} of {self._total:,} {unit}".rstrip() + f", {so_far}, about {left} left"


def _duration(seconds: float) -> str:
    """ "4.2 s", "75 s", "12 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min"

"""Running many passes through a model side by side, all held at the same module until that is dealt with.

A norm can be fitted only on what the norms before it, already replaced, let through. Running the whole
model anew for every norm would cost the square of its depth; here each pass runs once, in a thread of its
own, stops at every norm, and goes on when the norm has been fitted. Only one thread runs at any time.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Stopped(BaseException):
    """Ends a pass that is no longer wanted; not an Exception, so that no model catches it."""


@dataclasses.dataclass(eq=False)
class Pass:
    """One pass: a thread that runs when `go` is released and gives `back` when it stops or ends."""

    work: Callable[[Pass], None]
    go: threading.Semaphore = dataclasses.field(default_factory=lambda: threading.Semaphore(0))
    back: threading.Semaphore = dataclasses.field(default_factory=lambda: threading.Semaphore(0))
    at: str | None = None  # where it waits
    item: Any = None  # what it brought there
    done: bool = False
    cancelled: bool = False
    error: BaseException | None = None

    def stop(self, place: str, item: Any) -> None:
        """Called by the pass itself: wait at `place` until all others are there and it has been dealt with."""
        self.at, self.item = place, item
        self.back.release()
        self.go.acquire()
        self.at = self.item = None
        if self.cancelled:
            raise Stopped

    def run(self) -> None:
        """The thread's body."""
        self.go.acquire()
        try:
            if not self.cancelled:
                self.work(self)
        except Stopped:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.done = True
            self.back.release()

    def advance(self) -> None:
        """Called by the owner: let the pass run to its next stop or its end, and raise what it raised."""
        self.go.release()
        self.back.acquire()
        if self.error is not None:
            raise self.error


def run_in_lockstep(
    works: Sequence[Callable[[Pass], None]], deal_with: Callable[[str, Mapping[int, Any]], None]
) -> None:
    """Run all works; whenever all have stopped or ended, deal with the place where most of them wait.

    `deal_with(place, items)` gets what each waiting pass brought, by the index of its work. Raises what a work
    or deal_with raises, after ending all passes.
    """
    passes = [Pass(work) for work in works]
    threads = [threading.Thread(target=p.run, daemon=True) for p in passes]
    for thread in threads:
        thread.start()
    try:
        for p in passes:
            p.advance()
        while waiting := [p for p in passes if not p.done]:
            place = Counter(str(p.at) for p in waiting).most_common(1)[0][0]
            here = [p for p in waiting if p.at == place]
            deal_with(place, {index: p.item for index, p in enumerate(passes) if p in here})
            for p in here:
                p.advance()
    finally:
        for p in passes:
            if not p.done:
                p.cancelled = True
                p.go.release()
        for thread in threads:
            thread.join()

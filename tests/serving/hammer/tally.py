"""What became of every request: counted by kind and outcome, under a lock, with what should not have happened."""

from __future__ import annotations

import collections
import threading
import time

ANSWERED, REFUSED, CLOSED, CUT = "answered", "refused", "closed", "cut"
"""Outcomes: the right answer; an error in the protocol's own form; a connection closed without one; ended by us."""

MOST_FAULTS = 20  # shown


class Fault(AssertionError):
    """What a request must not come to."""


class Tally:
    """Counts of requests that have ended, and when good ones were answered."""

    def __init__(self) -> None:
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self.faults: list[str] = []
        self.started = self.ended = 0
        self.seconds: list[float] = []  # of good requests, from sending to having the answer
        self.longest_gap = 0.0  # seconds without an answer to a good one
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def begin_gap(self) -> None:
        """From now on good requests are sent one behind the other."""
        self._last = time.monotonic()

    def begin(self) -> None:
        """A request is about to be sent."""
        with self._lock:
            self.started += 1

    def end(self, kind: str, outcome: str, seconds: float) -> None:
        """It has ended. `outcome` is one of the above, with more words behind a colon: "refused: 400"."""
        with self._lock:
            self.ended += 1
            self.counts[kind, outcome] += 1
            if outcome == ANSWERED and kind.startswith("good"):
                now = time.monotonic()
                self.longest_gap = max(self.longest_gap, now - self._last)
                self._last = now
                self.seconds.append(seconds)

    def fault(self, kind: str, words: str) -> None:
        """It has ended as it must not."""
        with self._lock:
            self.ended += 1
            self.counts[kind, "FAULT"] += 1
            if len(self.faults) < MOST_FAULTS:
                self.faults.append(f"{kind}: {words[:400]}")

    def good(self) -> int:
        """Good requests that were rightly answered."""
        with self._lock:
            return sum(
                count for (kind, outcome), count in self.counts.items() if kind[:4] == "good" and outcome == ANSWERED
            )

    def lines(self) -> list[str]:
        """A line for each kind."""
        kinds = sorted({kind for kind, _ in self.counts})
        rows = {kind: {said: n for (other, said), n in sorted(self.counts.items()) if other == kind} for kind in kinds}
        return [f"{kind:28} {', '.join(f'{said} {n}' for said, n in row.items())}" for kind, row in rows.items()]

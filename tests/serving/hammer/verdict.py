"""What came of a server that was hammered."""

from __future__ import annotations

from typing import NamedTuple

from tests.serving.hammer.tally import Tally
from tests.serving.hammer.watch import Watch

# Memory may grow by so much: pools of the threads of a server fill for minutes. What one answer in ten leaves behind
# would be as much in two minutes, what every request of ten minutes does if it were 1.5 KiB
MOST_MIB = 64.0
MOST_DESCRIPTORS = 4
GAP_S = 30.0  # the longest time without an answer to a good request


class Hammered(NamedTuple):
    """Counts, samples, and what should not have happened."""

    tally: Tally
    watch: Watch
    faults: list[str]


def judged(tally: Tally, watch: Watch) -> Hammered:
    """To be called when all requests should have ended."""
    faults = tally.faults + watch.faults(MOST_MIB, MOST_DESCRIPTORS)
    if tally.longest_gap > GAP_S:
        faults.append(f"no good request was answered for {tally.longest_gap:.0f} s")
    if tally.started != tally.ended:
        faults.append(f"{tally.started - tally.ended} requests never ended")
    return Hammered(tally, watch, faults)

"""Memory, descriptors and shared memory of processes over time, read from /proc."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

PERIOD_S = 0.5
SHARED = Path("/dev/shm")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Of one process: MiB of memory of its own, open descriptors."""

    anonymous: float
    shared: float
    descriptors: int


def sample(pid: int) -> Sample:
    """Raises OSError where there is no such process, KeyError where it is ending."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    own, shared = (int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssShmem"))
    return Sample(own, shared, sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()))


def children(pid: int) -> list[int]:
    """The processes that a process has started, those of all its threads."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def shared_files(prefix: str) -> tuple[int, float]:
    """(files of shared memory whose names begin so, MiB that they hold)."""
    sizes = []
    for path in SHARED.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            sizes.append(path.stat().st_blocks * 512)
    return len(sizes), sum(sizes) / 2**20


class Watch(threading.Thread):
    """Samples the processes that `processes` names by their ids, until it is stopped."""

    def __init__(self, processes: Mapping[str, int], shared_prefix: str | None) -> None:
        super().__init__(daemon=True)
        self._processes, self._prefix = dict(processes), shared_prefix
        self._over = threading.Event()
        self.samples: dict[str, list[Sample]] = {name: [] for name in processes}
        self.files: list[tuple[int, float]] = []
        self.gone: set[str] = set()

    def run(self) -> None:
        """Called by start()."""
        while not self._over.is_set():
            self.look()
            self._over.wait(PERIOD_S)

    def look(self) -> None:
        """One sample of each."""
        for name, pid in self._processes.items():
            try:
                self.samples[name].append(sample(pid))
            except (OSError, KeyError):
                self.gone.add(name)
        if self._prefix is not None:
            self.files.append(shared_files(self._prefix))

    def stop(self) -> None:
        """Sample no more by itself; look() is called once more when nothing is under way."""
        self._over.set()
        self.join()

    def faults(self, most_mib: float, most_descriptors: int) -> list[str]:
        """What has grown from the start to the end: both are when nothing is under way."""
        found = [f"{name} has ended" for name in sorted(self.gone)]
        for name, samples in self.samples.items():
            if name in self.gone or not samples:
                continue
            first, last = samples[0], samples[-1]
            if last.anonymous - first.anonymous > most_mib:
                found.append(f"the memory of {name} grew from {first.anonymous:.0f} to {last.anonymous:.0f} MiB")
            if last.descriptors - first.descriptors > most_descriptors:
                found.append(f"{name} had {first.descriptors} descriptors open, and has {last.descriptors}")
        if self.files:
            if self.files[-1][0] > self.files[0][0]:
                found.append(f"there were {self.files[0][0]} files of shared memory, and are {self.files[-1][0]}")
            if self.files[-1][1] - self.files[0][1] > most_mib:
                found.append(f"the shared memory grew from {self.files[0][1]:.0f} to {self.files[-1][1]:.0f} MiB")
        return found

    def lines(self) -> list[str]:
        """What was seen: a line for each process, and one for the shared memory."""
        lines = []
        for name, samples in self.samples.items():
            if not samples:
                continue
            memory, open_ = [each.anonymous for each in samples], [each.descriptors for each in samples]
            early, late = _least(memory)
            lines.append(
                f"{name}: memory {memory[0]:.0f} MiB at the start, at least {early:.0f} in the second fifth and "
                f"{late:.0f} in the last, {memory[-1]:.0f} at the end, {max(memory):.0f} at most; "
                f"descriptors {open_[0]} at the start, {open_[-1]} at the end, {max(open_)} at most"
            )
        if self.files:
            (count, mib), (last, last_mib) = self.files[0], self.files[-1]
            lines.append(
                f"shared memory: {mib:.1f} MiB in {count} files at the start, {last_mib:.1f} in {last} at the end"
            )
        return lines


def _least(values: Sequence[float]) -> tuple[float, float]:
    """The least of the second and of the last fifth; the first is for warming up."""
    fifth = max(1, len(values) // 5)
    return min(values[fifth : 2 * fifth] or values), min(values[-fifth:])

"""How much memory is left, and what is known to take more: so that nobody is killed without a word.

Linux says it; elsewhere nothing is foreseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60  # a limit above it is none
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def free_memory() -> int | None:
    """Bytes that this process can still take: what the machine has, its control groups grant, and its own limits of
    data (ulimit -d) and address space (ulimit -v) leave. None where nobody says."""
    return min(_all_that_is_said(), default=None)


def lack_of_memory(needed: float, what: str) -> str | None:
    """A sentence for the user where `what` takes more bytes than are free; None where it may not."""
    free = free_memory()
    if free is None or needed <= free:
        return None
    return f"{what} would take {gib(needed)} and more of memory, and {gib(free)} are free"


def require_memory(needed: float, what: str, advice: str) -> None:
    """Raises MemoryError with that sentence and the advice, where there is one."""
    if (lack := lack_of_memory(needed, what)) is not None:
        raise MemoryError(f"{lack}: {advice}")


def at_most(limit: int, share: int) -> int:
    """So many bytes, or one in `share` of those that are free if that is less: of what may as well lie in files."""
    free = free_memory()
    return limit if free is None else max(min(limit, free // share), 0)


def gib(size: float) -> str:
    """A size for people."""
    return f"{size / 2**30:.1f} GiB"


def session_bytes(model: ir.Model) -> int:
    """About what a session of the whole model holds of its weights on the CPU, where those of two bytes are widened to
    float32; while it is made it holds more."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes * (2 if tensor.dtype in _HALVES else 1) for tensor in tensors if tensor is not None)


def _all_that_is_said() -> Iterator[int]:
    machine, own = _numbers(Path("/proc/meminfo")), _numbers(Path("/proc/self/status"))
    if "MemAvailable" in machine:
        yield machine["MemAvailable"] + machine.get("SwapFree", 0)
    yield from _of_limits(own)
    yield from _of_cgroups()


def _of_limits(own: dict[str, int]) -> Iterator[int]:
    """What the process's own limits leave of what they count."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for limit, counted in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and counted in own:
            yield max(most - own[counted], 0)


def _of_cgroups() -> Iterator[int]:
    """What the process's control groups and those above them grant. Pages of files that nobody has touched for a while
    do not count as taken: they are given up first."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = _CGROUPS / "memory" if controllers else _CGROUPS
            names = (
                ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
            )
            folder = root / path.lstrip("/")
            for group in (folder, *folder.parents):
                if group.is_relative_to(root):
                    yield from _of_cgroup(group, *names)


def _of_cgroup(group: Path, limit: str, usage: str) -> Iterator[int]:
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        idle = dict(line.split() for line in (group / "memory.stat").read_text().splitlines()).get("inactive_file", 0)
    except (OSError, ValueError):
        return
    if most.isdigit() and int(most) < _UNLIMITED:
        yield max(int(most) - used + int(idle), 0)


def _numbers(path: Path) -> dict[str, int]:
    """The lines "Name:  123 kB" of a file of /proc, in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    fields = (line.replace(":", " ").split() for line in lines)
    return {field[0]: int(field[1]) << 10 for field in fields if len(field) == 3 and field[2] == "kB"}

"""What is free is what the machine, its control groups and the process's own limits leave, whichever is least."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from dynorm_onnx.runtime import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is free")
LIMITED = """
import resource
from dynorm_onnx.runtime.memory import free_memory
before = free_memory()
used = int(open("/proc/self/status").read().split("{counted}:")[1].split()[0]) << 10
resource.setrlimit(resource.{limit}, (used + (96 << 20), used + (96 << 20)))
print(before, free_memory())
"""


@pytest.mark.parametrize(("limit", "counted"), [("RLIMIT_DATA", "VmData"), ("RLIMIT_AS", "VmSize")])
def test_the_limits_of_a_process_count(limit: str, counted: str) -> None:
    code = LIMITED.format(limit=limit, counted=counted)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = map(int, said.split())
    assert before > after and 64 << 20 < after <= 96 << 20


@pytest.mark.parametrize(
    ("line", "root", "limit", "usage"),
    [("0::/a/b", "", "memory.max", "memory.current"),
     ("4:memory:/a/b", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes")],
)  # fmt: skip
def test_control_groups_count_with_those_above_them(
    line: str, root: str, limit: str, usage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the pages of files that a group holds those that lie idle are as good as free."""
    for group, numbers in (("a", ("1000", "700", "100")), ("a/b", ("max", "50", "0"))):
        folder = tmp_path / root / group
        folder.mkdir(parents=True)
        for name, number in zip((limit, usage, "memory.stat"), numbers, strict=True):
            (folder / name).write_text(f"inactive_file {number}\nanon 3\n" if name == "memory.stat" else f"{number}\n")
    (tmp_path / "cgroup").write_text(f"5:cpu:/elsewhere\n{line}\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUPS", tmp_path / "cgroup")
    assert list(memory._of_cgroups()) == [1000 - 700 + 100]


def test_what_does_not_fit_is_said_in_a_sentence() -> None:
    free = memory.free_memory()
    assert free is not None and free > 0
    memory.require_memory(free // 2, "a small thing", "never mind")
    with pytest.raises(
        MemoryError, match=r"^a huge thing would take .* GiB and more of memory, and .* GiB are free: buy"
    ):
        memory.require_memory(4 * free, "a huge thing", "buy some")
    assert memory.at_most(1000, 8) == 1000 and memory.at_most(free, 8) < free // 4


def test_a_session_widens_weights_of_two_bytes() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 18]> g (float[n] x) => (float[n] x) '
        "<float16[2] a = {1, 2}, float[3] b = {1, 2, 3}, int64[1] c = {1}> { }"
    )
    assert memory.session_bytes(model) == 2 * 2 * 2 + 3 * 4 + 8

"""The library under load in tools that see what no test does: sanitizers, valgrind, emulated processors.

    python -m tests.custom_ops.sanitize [--folder FOLDER] [--only PART ...]

FOLDER keeps the three builds. Prints a line for every run; exits with 1 where one failed. Needs a C++ compiler, CMake
and the onnxruntime package; valgrind, qemu-user and objdump (binutils) each for their part, passed over without them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx
import onnxruntime as ort

from tests.custom_ops.nodes import model_of_all

ROOT = Path(__file__).parents[2]
# Without AVX; with it but without AVX2; AVX2 without what belongs to it; AVX2. Emulators have no AVX-512.
PROCESSORS = ("Nehalem", "SandyBridge", "Haswell,-fma", "Haswell,-f16c", "Haswell")
# ONNX Runtime copies a value onto itself; the C library's loader reads words behind the ends of names.
VALGRIND_SUPPRESSIONS = """
{
  runtime
  Memcheck:Overlap
  fun:__memcpy_chk
  obj:*libonnxruntime.so*
}
{
  loader
  Memcheck:Addr8
  obj:*/ld-linux*.so*
}
"""
# ONNX Runtime's, which is not instrumented. Of its other frames nothing: all of ours are called from there.
THREAD_SUPPRESSIONS = "race_top:pthread_cond_destroy\n"
# In objdump's lines: the registers that came with AVX-512; all that came with AVX and after, bit manipulation too.
AVX512 = re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])")
BEYOND_X86_64 = re.compile(
    rf"{AVX512.pattern}|\s(v\S+\s.*%[xy]mm|(andn|bextr|bls\w+|bzhi|mulx|pdep|pext|rorx|s[ah][lr]x)\s)"
)
OUT_OF_PLACE = {"avx2": AVX512, "avx512": re.compile("(?!)")}  # by the namespaces that have their own flags
PYTHON_TESTS = ("test_wrong_shapes.py", "test_operators.py", "test_under_load.py")
SLOW_THERE = "not memory and not thousand"  # allocations are kept for a while there, and threads are slow


@dataclasses.dataclass(frozen=True)
class Build:
    """One way to build the library and the native programs."""

    folder: Path
    sanitizer: str

    def make(self) -> None:
        options = ["-DDYNORM_CUDA=OFF", f"-DDYNORM_SANITIZE={self.sanitizer}"]
        targets = ["--target", "dynorm_ops", "native_tests", "--parallel", "2"]
        for command in (
            ["cmake", "-S", str(ROOT / "custom_ops"), "-B", str(self.folder), *options],
            ["cmake", "--build", str(self.folder), *targets],
        ):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    @property
    def library(self) -> Path:
        return self.folder / "libdynorm_ops.so"

    @property
    def kernels(self) -> list[str]:
        """The command that runs the kernels alone."""
        return [str(self.folder / "test_kernels")]

    def load(self, *arguments: object) -> list[str]:
        """The command that runs them in ONNX Runtime."""
        (runtime,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*")
        model = self.folder / "every_operator.onnx"
        onnx.save(model_of_all(), model)
        return [str(self.folder / "under_load"), str(runtime), str(self.library), str(model), *map(str, arguments)]


def run(command: Sequence[str], **environment: str) -> tuple[bool, str]:
    """Whether the command ended well, and what it said last."""
    kept = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    ran = subprocess.run(command, capture_output=True, text=True, env=kept | environment, cwd=ROOT)
    said = (ran.stdout.strip().splitlines() or ["nothing"])[-1]
    return ran.returncode == 0, said if ran.returncode == 0 else f"{ran.stdout}{ran.stderr}\nexit code {ran.returncode}"


def first_found(*programs: str) -> str | None:
    """The first of the programs that is found."""
    return next((found for program in programs if (found := shutil.which(program))), None)


def compilers_own(name: str) -> str:
    """A library of the compiler."""
    command = [os.environ.get("CXX", "c++"), f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def address(build: Build) -> Iterator[tuple[str, bool, str]]:
    yield "kernels", *run(build.kernels)
    for pool in (1, 2):
        yield f"1000 runs at once, {pool} threads in the session", *run(build.load("concurrent", 1000, 1, pool))
    yield "sessions, and no leak", *run(build.load("sessions", 200))
    tests = [f"tests/custom_ops/{name}" for name in PYTHON_TESTS]
    # Exceptions are thrown through the sanitizer, which looks for the C++ runtime only as it starts.
    preloaded = f"{compilers_own('libasan.so')} {compilers_own('libstdc++.so')}"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", SLOW_THERE, *tests]
    environment = {"LD_PRELOAD": preloaded, "ASAN_OPTIONS": "detect_leaks=0", "DYNORM_LIBRARY": str(build.library)}
    yield "tests in Python", *run(command, **environment)


def thread(build: Build) -> Iterator[tuple[str, bool, str]]:
    """One thread in the session: ONNX Runtime's own hand work over by ways that the sanitizer does not see."""
    suppressions = build.folder / "suppressions"
    suppressions.write_text(THREAD_SUPPRESSIONS)
    options = f"suppressions={suppressions}"
    yield "1000 runs of 50 threads", *run(build.load("concurrent", 50, 20, 1), TSAN_OPTIONS=options)


def valgrind(build: Build) -> Iterator[tuple[str, bool, str]]:
    """Reads of what was never written; its processor has no AVX-512."""
    program = shutil.which("valgrind")
    if program is None:
        return
    suppressions = build.folder / "suppressions"
    suppressions.write_text(VALGRIND_SUPPRESSIONS)
    checked = [program, "--leak-check=full", "--error-exitcode=9", f"--suppressions={suppressions}"]
    yield "sessions", *run([*checked, *build.load("sessions", 10)])
    yield "200 runs of 8 threads", *run([*checked, *build.load("concurrent", 8, 25, 2)])


def processors(build: Build) -> Iterator[tuple[str, bool, str]]:
    """A processor without an instruction ends the program that meets it."""
    emulator = first_found("qemu-x86_64", "qemu-x86_64-static")
    if emulator is None:
        return
    for processor in PROCESSORS:
        emulated = [emulator, "-cpu", processor]
        ended, said = run([*emulated, *build.kernels])
        listed = subprocess.run([*emulated, *build.kernels, "sweep", "1000003"], capture_output=True, text=True).stdout
        sets = sorted(set(re.findall(r"^(\w+) \w+ float32:", listed, re.MULTILINE)))
        allowed = ["avx2", "portable"] if processor == "Haswell" else ["portable"]
        yield f"kernels on {processor}", ended and sets == allowed, f"{', '.join(sets)}: {said}"
        yield f"100 runs of 4 threads on {processor}", *run([*emulated, *build.load("concurrent", 4, 25, 2)])


def foreign_instructions(disassembly: str) -> dict[str, int]:
    """How many instructions beyond x86-64 itself each part of the library has that was not compiled for them."""
    part = ""
    found: dict[str, int] = {}
    for line in disassembly.splitlines():
        if line.endswith(">:"):
            name = re.search(r"dynorm::(\w+)::", line)
            part = name[1] if name else "the rest"
        elif OUT_OF_PLACE.get(part, BEYOND_X86_64).search(line):
            found[part] = found.get(part, 0) + 1
    return found


def instructions(build: Build) -> Iterator[tuple[str, bool, str]]:
    """Every instruction of the library, reached or not."""
    program = shutil.which("objdump")
    if program is None:
        return
    command = [program, "--disassemble", "--demangle", "--no-show-raw-insn", str(build.library)]
    disassembly = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = foreign_instructions(disassembly)
    yield "instructions", not found, f"{disassembly.count(chr(10))} lines, out of place: {found or 'none'}"


PARTS: dict[str, tuple[str, Callable[[Build], Iterator[tuple[str, bool, str]]]]] = {
    "address": ("address", address),
    "thread": ("thread", thread),
    "valgrind": ("OFF", valgrind),
    "processors": ("OFF", processors),
    "instructions": ("OFF", instructions),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv" / "sanitize", help="where the builds are kept")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some parts only")
    arguments = parser.parse_args()
    failed = 0
    for name in arguments.only:
        sanitizer, part = PARTS[name]
        build = Build(arguments.folder.resolve() / sanitizer.lower(), sanitizer)
        build.make()
        started, empty = time.monotonic(), True
        for what, well, said in part(build):
            seconds = time.monotonic() - started
            print(f"{name}, {what}: {'' if well else 'FAILED: '}{said} ({seconds:.0f} s)", flush=True)
            failed += not well
            started, empty = time.monotonic(), False
        if empty:
            print(f"{name}: not done, its program is not installed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

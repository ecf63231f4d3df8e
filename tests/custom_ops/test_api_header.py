"""The declared subset of ONNX Runtime's C API against the official header, from Debian's libonnxruntime-dev."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.custom_ops.official import compiler, official_headers

SOURCES = Path(__file__).parents[2] / "custom_ops"


def compile_header(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [
        compiler(),
        "-std=c++17",
        "-fsyntax-only",
        "-x",
        "c++",
        f"-I{SOURCES}",
        *flags,
        str(SOURCES / "ort_api.h"),
    ]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def official_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official_headers(tmp_path_factory.mktemp("debian"))


def test_the_subset_has_its_entries_in_place() -> None:
    ran = compile_header()
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_the_official_header_has_the_same_entries_in_place(official_folder: Path) -> None:
    ran = compile_header("-DDYNORM_OFFICIAL_ORT_HEADER", f"-I{official_folder}")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        *(SOURCES / name for name in ("register.cpp", "operator.cpp", "cpu_operator.cpp", "cuda_operator.cpp")),
        Path(__file__).with_name("native") / "under_load.cpp",
    ],
    ids=lambda path: path.name,
)
def test_the_sources_compile_with_the_official_header(official_folder: Path, source: Path) -> None:
    """The same calls against the official signatures: a subset that declares others would not compile both ways."""
    flags = ["-DDYNORM_OFFICIAL_ORT_HEADER", f"-I{official_folder}", "-DDYNORM_WITH_CUDA"]
    command = [compiler(), "-std=c++17", "-fsyntax-only", f"-I{SOURCES}", *flags, str(source)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr

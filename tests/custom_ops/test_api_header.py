"""The declared subset of ONNX Runtime's C API against the official header, from Debian's libonnxruntime-dev."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "custom_ops"
SYSTEM_HEADERS = (Path("/usr/include/onnxruntime"), Path("/usr/local/include/onnxruntime"))
MIRROR = "http://deb.debian.org/debian"


def compiler() -> str:
    found = shutil.which("c++") or shutil.which("g++")
    if found is None:
        pytest.skip("no C++ compiler")
    return found


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


def downloaded_header(folder: Path) -> Path:
    """The header of Debian's package, by an apt that leaves the system's own state alone; skips without one."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("no apt-get here, and no onnxruntime_c_api.h in the system's include folders")
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    sources = folder / "sources.list"
    sources.write_text(f"deb [trusted=yes] {MIRROR} trixie main\n")
    options = [
        f"-oDir::Etc::sourcelist={sources}",
        "-oDir::Etc::sourceparts=/dev/null",
        f"-oDir::State::Lists={folder / 'lists'}",
        f"-oDir::Cache={folder / 'cache'}",
    ]
    for arguments in (["update"], ["download", "libonnxruntime-dev"]):
        limits = ["-oAcquire::http::Timeout=20", "-oAcquire::Retries=0"]
        ran = subprocess.run(["apt-get", *options, *limits, *arguments], cwd=folder, capture_output=True, text=True)
        if ran.returncode:
            pytest.skip(f"apt-get {arguments[0]} fails: {ran.stderr.strip()}")
    (package,) = folder.glob("libonnxruntime-dev_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "root")], check=True)
    return next((folder / "root").rglob("onnxruntime_c_api.h")).parent


@pytest.fixture(scope="module")
def official_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for folder in SYSTEM_HEADERS:
        if (folder / "onnxruntime_c_api.h").is_file():
            return folder
    return downloaded_header(tmp_path_factory.mktemp("debian"))


def test_the_subset_has_its_entries_in_place() -> None:
    ran = compile_header()
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_the_official_header_has_the_same_entries_in_place(official_folder: Path) -> None:
    ran = compile_header("-DDYNORM_OFFICIAL_ORT_HEADER", f"-I{official_folder}")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("source", ["register.cpp", "operator.cpp", "cpu_operator.cpp", "cuda_operator.cpp"])
def test_the_sources_compile_with_the_official_header(official_folder: Path, source: str) -> None:
    """The same calls against the official signatures: a subset that declares others would not compile both ways."""
    flags = ["-DDYNORM_OFFICIAL_ORT_HEADER", f"-I{official_folder}", "-DDYNORM_WITH_CUDA"]
    command = [compiler(), "-std=c++17", "-fsyntax-only", *flags, str(SOURCES / source)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr

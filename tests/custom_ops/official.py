"""ONNX Runtime's own headers, the system's or those of Debian's libonnxruntime-dev, and a compiler for them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SYSTEM_HEADERS = (Path("/usr/include/onnxruntime"), Path("/usr/local/include/onnxruntime"))
MIRROR = "http://deb.debian.org/debian"


def compiler() -> str:
    found = shutil.which("c++") or shutil.which("g++")
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def official_headers(folder: Path) -> Path:
    """The folder of onnxruntime_c_api.h and onnxruntime_cxx_api.h; `folder` is for what must be fetched."""
    for known in SYSTEM_HEADERS:
        if (known / "onnxruntime_c_api.h").is_file():
            return known
    return downloaded_header(folder)


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

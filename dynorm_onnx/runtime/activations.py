"""Activations at a cut of a model, in memory up to a limit, above it in files."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np

from dynorm_onnx.runtime.arrays import is_tensor_of_numbers
from dynorm_onnx.runtime.memory import at_most

log = logging.getLogger(__name__)

_SHARE = 8  # of the memory that is free: two models have a store each, and need the rest to run


class ActivationStore:
    """Arrays by (batch, name). Close it, or use it in a `with`, to delete what it wrote.

    Above `memory_limit` bytes held (or an eighth of the memory that is free, if that is less) new arrays go to files in
    a temporary folder and are read back through memory maps, so that the operating system decides what stays in memory.
    """

    def __init__(self, memory_limit: int) -> None:
        self._limit = at_most(memory_limit, _SHARE)
        self._held = 0
        self._arrays: dict[tuple[int, str], np.ndarray] = {}
        self._files: dict[tuple[int, str], Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._written = 0

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, batch: int, name: str, array: np.ndarray) -> None:
        """Keep an array; it must not be written to afterwards.

        What is no array of numbers (strings, a sequence) stays in memory, uncounted: it is small beside activations.
        """
        key = (batch, name)
        if not is_tensor_of_numbers(array):
            self._arrays[key] = array
        elif self._held + array.nbytes > self._limit and array.nbytes:
            self._arrays[key] = self._mapped(key, array)
        else:
            self._arrays[key] = array
            self._held += array.nbytes

    def get(self, batch: int, name: str) -> np.ndarray:
        """The array; KeyError where it was never put or has been dropped."""
        return self._arrays[batch, name]

    def drop(self, name: str) -> None:
        """Forget a name in every batch."""
        for key in [key for key in self._arrays if key[1] == name]:
            array = self._arrays.pop(key)
            if (file := self._files.pop(key, None)) is not None:
                file.unlink()
            elif is_tensor_of_numbers(array):
                self._held -= array.nbytes

    def close(self) -> None:
        """Forget everything and delete the files."""
        self._arrays.clear()
        self._files.clear()
        self._held = 0
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _mapped(self, key: tuple[int, str], array: np.ndarray) -> np.ndarray:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="dynorm-activations-")
            log.info("activations above %d MiB are kept in %s", self._limit >> 20, self._folder.name)
        self._written += 1
        file = Path(self._folder.name) / f"{self._written}.bin"
        array.tofile(file)
        self._files[key] = file
        return np.memmap(file, dtype=array.dtype, mode="r", shape=array.shape)

"""Re-fitted weights, in memory up to a limit, above it in files."""

from __future__ import annotations

import functools
import logging
import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np
import onnx_ir as ir

from dynorm_onnx.runtime.memory import at_most

log = logging.getLogger(__name__)

_SHARE = 8  # of the memory that is free


class WeightStore:
    """Weights as they are solved: arrays while all fit `memory_limit` bytes, then tensors read from a file when used.

    The limit is an eighth of what is free, if that is less. The files go when the last of their tensors does.
    """

    def __init__(self, memory_limit: int) -> None:
        self._limit = at_most(memory_limit, _SHARE)
        self._held = 0
        self._folder: Path | None = None
        self._written = 0

    def keep(self, name: str, array: np.ndarray) -> np.ndarray | ir.TensorProtocol:
        """The array, or a tensor of this name with its values."""
        if self._held + array.nbytes <= self._limit:
            self._held += array.nbytes
            return array
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="dynorm-weights-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            log.info("re-fitted weights above %d MiB are kept in %s", self._limit >> 20, self._folder)
        self._written += 1
        file = self._folder / f"{self._written}.bin"
        array.tofile(file)
        read = functools.partial(self._read, file, array.dtype, array.shape)
        return ir.LazyTensor(read, ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape), name=name)

    def _read(self, file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> ir.TensorProtocol:
        """A method, so that a tensor holds on to the store and thereby to its files."""
        return ir.tensor(np.fromfile(file, dtype).reshape(shape))

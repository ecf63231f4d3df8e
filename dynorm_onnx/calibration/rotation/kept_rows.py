"""Rows kept in a file without a name, to be read a piece at a time: a gigabyte of tokens costs no memory."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator

import numpy as np

BLOCK = 1 << 22  # elements of a piece that is read when all are


class KeptRows:
    """The rows of an array [T, C] as float16. The file goes with the object."""

    def __init__(self, rows: np.ndarray) -> None:
        self._count, self.channels = rows.shape
        self._file = tempfile.TemporaryFile(prefix="dynorm-tokens-")  # noqa: SIM115, it stays open
        weakref.finalize(self, self._file.close)
        rows.astype(np.float16).tofile(self._file)
        self._file.flush()

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` up to `stop`, [stop - start, C] float32."""
        self._file.seek(2 * self.channels * start)
        flat = np.fromfile(self._file, np.float16, self.channels * (stop - start))
        return flat.reshape(-1, self.channels).astype(np.float32)

    def blocks(self, stop: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows, or those before `stop`, piece by piece, each with its place."""
        end, step = len(self) if stop is None else stop, max(BLOCK // self.channels, 1)
        for start in range(0, end, step):
            place = slice(start, min(start + step, end))
            yield place, self.read(place.start, place.stop)

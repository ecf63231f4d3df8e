"""The grid of values that a quantised weight may have, whatever the file's spelling of it."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A matrix [K, N] of few numbers, each of them for a block of `rows` x `columns` places; the last blocks may be
    cut short."""

    numbers: np.ndarray  # [ceil(K / rows), ceil(N / columns)] float64
    rows: int
    columns: int
    shape: tuple[int, int]  # [K, N]

    @classmethod
    def of(cls, numbers: np.ndarray, shape: tuple[int, int], block: tuple[int, int] | None = None) -> Blocks:
        """Numbers that broadcast to the matrix, or that stand for a `block` each. Raises ValueError where they do
        neither."""
        wide = numbers.astype(np.float64).reshape((1,) * (2 - numbers.ndim) + numbers.shape)
        if wide.ndim != 2:
            raise ValueError(f"{numbers.ndim} axes")
        if block is None:
            block = tuple(size if own == 1 else 1 for own, size in zip(wide.shape, shape, strict=True))  # type: ignore[assignment]
        assert block is not None
        if wide.shape != tuple(-(-size // own) for size, own in zip(shape, block, strict=True)):
            raise ValueError(f"{wide.shape} for {shape}")
        return cls(wide, *block, shape)

    @property
    def turned(self) -> Blocks:
        """Those of the transpose."""
        return Blocks(self.numbers.T, self.columns, self.rows, self.shape[::-1])

    def row(self, place: int) -> np.ndarray:
        """One row, [N]."""
        return np.repeat(self.numbers[place // self.rows], self.columns)[: self.shape[1]]

    def spread(self) -> np.ndarray:
        """The matrix [K, N]."""
        wide = self.numbers
        for axis, size in enumerate((self.rows, self.columns)):
            if wide.shape[axis] > 1 and size > 1:
                wide = np.repeat(wide, size, axis).take(range(self.shape[axis]), axis)
        return np.broadcast_to(wide, self.shape)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The values (q - zero) x scale x factor of a matrix [K, N], for whole q from `low` to `high`.

    `dtype` is the type that a file stores the scales in. The factor is what stands outside: alpha of a Gemm.
    """

    scale: Blocks
    zero: Blocks
    low: int
    high: int
    dtype: np.dtype
    factor: float = 1.0

    def values(self, q: np.ndarray) -> np.ndarray:
        """What whole numbers [K, N] stand for, float64."""
        return (q.astype(np.float64) - self.zero.spread()) * (self.scale.spread() * self.factor)

    def whole(self, values: np.ndarray) -> np.ndarray:
        """The q of the nearest values of the grid, [K, N] float64."""
        return self._whole(values, self.scale.spread(), self.zero.spread())

    def whole_row(self, place: int, values: np.ndarray) -> np.ndarray:
        """That of one row, [N]."""
        return self._whole(values, self.scale.row(place), self.zero.row(place))

    def values_of_row(self, place: int, q: np.ndarray) -> np.ndarray:
        """values() of one row, [N]."""
        return (q - self.zero.row(place)) * (self.scale.row(place) * self.factor)

    def with_scale(self, numbers: np.ndarray) -> Grid:
        """With other scales, [KB, NB], rounded to their type."""
        rounded = numbers.astype(self.dtype).astype(np.float64)
        return dataclasses.replace(self, scale=dataclasses.replace(self.scale, numbers=rounded))

    def _whole(self, values: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        step = scale * self.factor
        steps = np.divide(values, step, out=np.zeros(np.shape(values)), where=step != 0)
        return np.clip(np.rint(steps + zero), self.low, self.high)

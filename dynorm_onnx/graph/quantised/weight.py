"""A quantised weight in a file: how it is read as a matrix, and what its initializers become when that changes."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.quantised.grid import Blocks, Grid
from dynorm_onnx.graph.values.fixed import is_fixed

RANGES = {
    ir.DataType.INT8: (-128, 127), ir.DataType.UINT8: (0, 255), ir.DataType.INT4: (-8, 7), ir.DataType.UINT4: (0, 15),
}  # fmt: skip
"""Types of whole numbers that a grid is made of."""

_NARROWER = {(-128, 127): ((-64, 64), (-127, 127)), (0, 255): ((0, 127),)}
"""Parts of a range that quantisers keep to: for the sake of a sum of two products that must fit 16 bits, as kernels
without VNNI add them, or of symmetry."""


class Layout(Protocol):
    """Where the whole numbers of a matrix [K, N] lie in an initializer."""

    def read(self, stored: np.ndarray) -> np.ndarray:
        """The numbers, [K, N]."""

    def write(self, numbers: np.ndarray, stored: np.ndarray) -> np.ndarray:
        """The initializer with other numbers [K, N]; what lies around them as in `stored`."""


@dataclasses.dataclass(frozen=True)
class Plain:
    """One element a number: [K, N], or [N, K] where `transposed`, in any shape of that order."""

    shape: tuple[int, int]  # of the stored matrix
    transposed: bool

    def read(self, stored: np.ndarray) -> np.ndarray:
        """See Layout."""
        matrix = stored.reshape(self.shape).astype(np.int16)  # numpy computes nothing with 4-bit types
        return matrix.T if self.transposed else matrix

    def write(self, numbers: np.ndarray, stored: np.ndarray) -> np.ndarray:
        """See Layout."""
        matrix = numbers.T if self.transposed else numbers
        return matrix.astype(np.int16).astype(stored.dtype).reshape(stored.shape)


@dataclasses.dataclass(frozen=True)
class QuantisedWeight:
    """A matrix [K, N] on a grid: the initializer of its whole numbers, and that of its scales.

    `scales` is None where they must stay as they are: something else reads them, or they are no initializer.
    `scale` and `zero` hold what both are as matrices [K, N].
    """

    value: ir.Value
    layout: Layout
    scale: Blocks
    zero: Blocks
    limits: tuple[int, int]
    dtype: np.dtype  # of the scales
    scales: ir.Value | None
    transposed: bool  # whether the initializers hold [N, K]

    @property
    def shape(self) -> tuple[int, int]:
        """[K, N]."""
        return self.scale.shape

    @property
    def values(self) -> tuple[ir.Value, ...]:
        """The initializers that a new matrix changes."""
        return (self.value,) if self.scales is None else (self.value, self.scales)

    def numbers(self) -> np.ndarray:
        """The whole numbers, [K, N]."""
        return self.layout.read(_array(self.value))

    def matrix(self) -> np.ndarray:
        """[K, N] float64."""
        return self.grid().values(self.numbers())

    def grid(self, factor: float = 1.0) -> Grid:
        """The values that `factor` times the matrix may have. Of 8 bits only the part of the range that the file
        keeps to."""
        low, high = self.limits
        if self.limits in _NARROWER:
            numbers = self.numbers()
            least, most = int(numbers.min(initial=0)), int(numbers.max(initial=0))
            fitting = (part for part in _NARROWER[self.limits] if part[0] <= least and most <= part[1])
            low, high = next(fitting, self.limits)
        return Grid(self.scale, self.zero, low, high, self.dtype, factor)

    def stored(self, matrix: np.ndarray, grid: Grid) -> dict[str, np.ndarray]:
        """The initializers, by name, for a matrix [K, N] of that grid; one of other values is rounded to them."""
        arrays = {str(self.value.name): self.layout.write(grid.whole(matrix), _array(self.value))}
        if self.scales is not None and not np.array_equal(grid.scale.numbers, self.scale.numbers):
            held = _array(self.scales)
            numbers = grid.scale.numbers.T if self.transposed else grid.scale.numbers
            arrays[str(self.scales.name)] = numbers.reshape(held.shape).astype(held.dtype)
        return arrays


def is_read_once(value: ir.Value) -> bool:
    """Whether one operand of one node is all that reads a value."""
    return not value.is_graph_output() and sum(1 for _ in value.uses()) == 1


def free_scales(value: ir.Value | None) -> ir.Value | None:
    """The initializer of scales if it may change: nothing else reads it; else None."""
    return value if value is not None and is_fixed(value) and is_read_once(value) else None


def unusable(value: ir.Value | None, what: str) -> str | None:
    """Why an initializer of whole numbers cannot be re-fitted; None where it can."""
    if value is None or not is_fixed(value) or value.const_value is None:
        return f"{what} are no initializer"
    if not is_read_once(value):
        return f"{what} are read in {sum(1 for _ in value.uses())} places, which one solution cannot suit"
    return None


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()

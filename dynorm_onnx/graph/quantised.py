"""Quantised weights of linear layers: where they are read from, and the grid of values that they may have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.fixed import fixed_tensor, is_fixed
from dynorm_onnx.graph.reads import inputs_of

HELD = frozenset(
    {"MatMulNBits", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm",
     "MatMulBnb4", "QAttention", "ConvInteger", "QLinearConv", "MatMulFpQ4", "QMoE", "GemmFloat8"}
)  # fmt: skip
"""Operators that take quantised weights themselves."""

_RANGES = {
    ir.DataType.INT8: (-128, 127), ir.DataType.UINT8: (0, 255), ir.DataType.INT4: (-8, 7), ir.DataType.UINT4: (0, 15),
}  # fmt: skip
_NARROW = frozenset({
    *_RANGES, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E5M2FNUZ,
    ir.DataType.FLOAT4E2M1, ir.DataType.INT16, ir.DataType.UINT16,
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Grid:
    """The values (q - zero) * scale for whole q from `low` to `high`; scale and zero have the weight's shape."""

    scale: np.ndarray
    zero: np.ndarray
    low: int
    high: int

    def values(self, q: np.ndarray) -> np.ndarray:
        """What whole numbers stand for, float64."""
        return (q.astype(np.float64) - self.zero) * self.scale

    def whole(self, values: np.ndarray) -> np.ndarray:
        """The q of the nearest values of the grid, float64."""
        steps = np.divide(values, self.scale, out=np.zeros(np.shape(values)), where=self.scale != 0)
        return np.clip(np.rint(steps) + self.zero, self.low, self.high)

    def row(self, place: int) -> Grid:
        """That of one row of the weight."""
        return dataclasses.replace(self, scale=self.scale[place], zero=self.zero[place])

    def oriented(self, factor: float, *, transposed: bool) -> Grid:
        """That of `factor` times the weight, or times its transpose."""
        scale, zero = (array.T if transposed else array for array in (self.scale * factor, self.zero))
        return dataclasses.replace(self, scale=scale, zero=zero)


@dataclasses.dataclass(frozen=True)
class Dequantised:
    """An initializer of whole numbers behind DequantizeLinear, and behind a Transpose perhaps."""

    weight: ir.Value
    turned: bool
    grid: Grid


def dequantised(value: ir.Value) -> Dequantised | None:
    """What an operand [K, N] is dequantised from where it has a grid and nothing else reads it, else None."""
    turned = False
    while (node := value.producer()) is not None and node.op_type == "Transpose" and node.inputs[0] is not None:
        if not _is_read_once(value):
            return None
        turned, value = not turned, node.inputs[0]
    if node is None or node.op_type != "DequantizeLinear" or not _is_read_once(value):
        return None
    weight, scale = node.inputs[0], fixed_tensor(node.inputs[1])
    if weight is None or scale is None or not is_fixed(weight) or not _is_read_once(weight):
        return None
    if weight.dtype not in _RANGES or weight.const_value is None or len(weight.const_value.shape) != 2:
        return None
    has_zero = len(node.inputs) > 2 and node.inputs[2] is not None
    zero = fixed_tensor(node.inputs[2]) if has_zero else None
    if has_zero and zero is None:
        return None
    zeros = np.zeros(()) if zero is None else zero.numpy().astype(np.float64)
    shape = tuple(weight.const_value.shape.numpy())
    try:
        wide = [_spread(array, node, shape) for array in (scale.numpy().astype(np.float64), zeros)]
    except ValueError:  # a scale that does not fit the weight
        return None
    return Dequantised(weight, turned, Grid(wide[0], wide[1], *_RANGES[weight.dtype]))


def _spread(array: np.ndarray, node: ir.Node, shape: tuple[int, ...]) -> np.ndarray:
    """A scale or zero point in the shape of the weight: one for all, one for each place of an axis, or one for each
    block along it. Raises ValueError where it does not fit."""
    if array.size == 1:
        return np.broadcast_to(array.reshape(()), shape)
    named, blocked = node.attributes.get("axis"), node.attributes.get("block_size")
    axis = (1 if named is None else named.as_int()) % len(shape)
    block = 0 if blocked is None else blocked.as_int()
    if block:
        return np.broadcast_to(np.repeat(array, block, axis).take(range(shape[axis]), axis, mode="raise"), shape)
    return np.broadcast_to(array.reshape([-1 if place == axis else 1 for place in range(len(shape))]), shape)


def made_from(value: ir.Value, constants: set[ir.Value]) -> str | None:
    """Where `value` is computed from constants: how, as "Cast, Mul: its weights are quantised"; else None."""
    if value not in constants:
        return None
    ops: dict[str, None] = {}
    narrow = False
    for node in _upstream(value):
        ops[node.op_type] = None
        narrow = narrow or node.op_type == "DequantizeLinear" or any(v.dtype in _NARROW for v in inputs_of(node))
    if not ops:
        return None
    spelled = ", ".join(list(ops)[::-1])
    return (
        f"{spelled}: its weights are quantised" if narrow else f"{spelled}: its weights are made where the model runs"
    )


def _upstream(value: ir.Value) -> Iterator[ir.Node]:
    pending, seen = [value], set[ir.Node]()
    while pending:
        node = pending.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type != "Constant":
            yield node
        pending.extend(inputs_of(node))


def _is_read_once(value: ir.Value) -> bool:
    return not value.is_graph_output() and sum(1 for _ in value.uses()) == 1

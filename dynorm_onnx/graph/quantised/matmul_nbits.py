"""com.microsoft::MatMulNBits: y = x W^T + bias, W [N, K] in blocks along K, several whole numbers to a byte.

B is uint8 [N, blocks, block_size x bits / 8], the first number in the lowest bits; scales and zero points have one for
each block, zero points packed like B, row by row, or floats (ONNX Runtime's contributed operators).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.quantised.grid import Blocks
from dynorm_onnx.graph.quantised.product import QuantisedProduct
from dynorm_onnx.graph.quantised.weight import QuantisedWeight, free_scales, unusable
from dynorm_onnx.graph.values.fixed import fixed_tensor

_BITS = (2, 4, 8)  # what bytes hold a whole number of
_NAMES = ("A", "B", "scales", "zero_points", "g_idx", "bias")


@dataclasses.dataclass(frozen=True)
class Packed:
    """Numbers of 2, 4 or 8 bits in bytes, [N, blocks, bytes of a block]; the last block of a row may be cut short."""

    shape: tuple[int, int]  # [K, N]
    block: int
    bits: int

    def read(self, stored: np.ndarray) -> np.ndarray:
        """See Layout."""
        inputs, outputs = self.shape
        rows = unpacked(stored.reshape(outputs, -1), self.bits)
        return rows[:, :inputs].T.astype(np.int16)

    def write(self, numbers: np.ndarray, stored: np.ndarray) -> np.ndarray:
        """See Layout."""
        inputs, outputs = self.shape
        rows = unpacked(stored.reshape(outputs, -1), self.bits)
        rows[:, :inputs] = numbers.T.astype(np.uint8)
        return packed(rows, self.bits).reshape(stored.shape)


def unpacked(stored: np.ndarray, bits: int) -> np.ndarray:
    """The numbers, uint8, in the bytes of the last axis, the first in the lowest bits."""
    each = (stored[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)) & np.uint8(2**bits - 1)
    return each.reshape(*stored.shape[:-1], -1)


def packed(numbers: np.ndarray, bits: int) -> np.ndarray:
    """unpacked() the other way, uint8."""
    each = numbers.reshape(*numbers.shape[:-1], -1, 8 // bits)
    return np.bitwise_or.reduce(each << np.arange(0, 8, bits, dtype=np.uint8), axis=-1)


def matmul_nbits(node: ir.Node) -> QuantisedProduct | str:
    """The product, or why its weight cannot be re-fitted."""
    operands = dict(zip(_NAMES, node.inputs, strict=False))
    inputs, outputs, block = (node.attributes[name].as_int() for name in ("K", "N", "block_size"))
    shape, bits = (inputs, outputs), node.attributes["bits"].as_int() if "bits" in node.attributes else 4
    if bits not in _BITS:
        return f"of {bits} bits a byte does not hold a whole number"
    if "weight_prepacked" in node.attributes and node.attributes["weight_prepacked"].as_int():
        return "they lie in the order of one GPU's kernels"
    if operands.get("g_idx") is not None:
        return "g_idx gives each of its inputs a block of its own"
    if (why := unusable(operands["B"], "its packed weights")) is not None:
        return why
    value, zeros = operands["B"], operands.get("zero_points")
    scale, zero = fixed_tensor(operands["scales"]), fixed_tensor(zeros)
    if scale is None or (zeros is not None and zero is None):
        return "its scales or zero points are no constants"
    count = -(-inputs // block)
    try:
        scales = Blocks.of(scale.numpy().reshape(outputs, count).T, shape, (block, 1))
        zero_points = Blocks.of(_zero_points(zero, outputs, count, bits).T, shape, (block, 1))
    except ValueError:
        return f"its scales or zero points are not {outputs} x {count}"
    assert value is not None and operands["A"] is not None
    free = free_scales(operands["scales"])
    layout, limits = Packed(shape, block, bits), (0, 2**bits - 1)
    weight = QuantisedWeight(value, layout, scales, zero_points, limits, scale.numpy().dtype, free, transposed=True)
    bias = None if operands.get("bias") is None else _NAMES.index("bias")
    return QuantisedProduct(operands["A"], weight, (node,), bias)


def _zero_points(zero: ir.TensorProtocol | None, rows: int, count: int, bits: int) -> np.ndarray:
    """[N, blocks] float64. Raises ValueError where there are not so many."""
    if zero is None:
        return np.full((rows, count), 2.0 ** (bits - 1))
    stored = zero.numpy()
    if stored.dtype != np.uint8:
        return stored.astype(np.float64).reshape(rows, count)
    return unpacked(stored.reshape(rows, -1), bits)[:, :count].astype(np.float64)

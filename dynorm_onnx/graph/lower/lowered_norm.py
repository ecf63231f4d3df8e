"""LoweredNorm: one norm of a lowered model, a single canonical node over the last axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.errors import ModelError
from dynorm_onnx.graph.norm_site import Kind


@dataclasses.dataclass(frozen=True, eq=False)
class LoweredNorm:
    """y = norm(x) * weight + bias by one node; x and y have shape [..., C] and type `dtype`.

    The node is LayerNormalization, RMSNormalization or SimplifiedLayerNormalization with axis -1. A
    weight that is no constant [C] vector is multiplied on by nodes that follow y, and is ones here;
    likewise a bias.
    """

    site_name: str
    kind: Kind
    form: str
    node: ir.Node
    x: ir.Value
    y: ir.Value
    weight: np.ndarray  # [C] float32; [1] if channels is None
    bias: np.ndarray | None  # [C] float32
    epsilon: float
    channels: int | None  # C, where the model says it
    dtype: ir.DataType
    skip: tuple[ir.Value, ir.Value] | None  # the operands, if x is a sum of two of equal shape


def require_finite(norms: Sequence[LoweredNorm]) -> None:
    """Raises ModelError for a norm whose weight or bias holds NaN or infinity: nothing can be fitted to its output."""
    for norm in norms:
        for position, array in enumerate((norm.weight, norm.bias), 1):
            if array is None or np.isfinite(array).all():
                continue
            channel = int(np.argmin(np.isfinite(array)))
            value = norm.node.inputs[position]
            raise ModelError(
                f"{norm.site_name}: its {('weight', 'bias')[position - 1]} {value.name if value is not None else ''!r} "
                f"is {array[channel]} in channel {channel}; mend the model, or leave this norm with --keep "
                f"{norm.site_name}"
            )


def sum_operands(x: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The operands of the Add that produces `x`, if they have the same shape; else None.

    Of bfloat16 the sum may be computed in float32, between Casts (Emitter.add()).
    """
    node = x.producer()
    casts = x.dtype == ir.DataType.BFLOAT16 and _is(node, "Cast")
    if casts and node is not None and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or not _is(node, "Add"):
        return None
    a, b = (_narrow(value, x.dtype) if casts else value for value in node.inputs)
    if a is None or b is None or a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return None
    return (a, b) if all(_equal(i, j) for i, j in zip(a.shape, b.shape, strict=True)) else None


def _is(node: ir.Node | None, op_type: str) -> bool:
    return node is not None and node.domain == "" and node.op_type == op_type


def _narrow(value: ir.Value | None, dtype: ir.DataType | None) -> ir.Value | None:
    """What a Cast made wide, if it was of this type."""
    node = value.producer() if value is not None else None
    source = node.inputs[0] if node is not None and _is(node, "Cast") else None
    return source if source is not None and source.dtype == dtype else None


def _equal(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    """Whether two dimensions of summands are equal; only a 1 could be stretched to meet the other.

    An exporter gives a dimension that it could not follow no name, or one of its own. Of a residual
    stream none of these is 1 unless the other is.
    """
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return 1 not in (a, b)

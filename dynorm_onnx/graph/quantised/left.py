"""Quantised weights that are left as they are, and why."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dynorm_onnx.graph.quantised.weight import RANGES
from dynorm_onnx.graph.values.reads import inputs_of

_ROUNDED = "its outputs are rounded to a fixed grid too"
_TABLE = "its weights are entries of a table, which have no scale and zero point"
_CONV = "convolutions on whole numbers are not re-fitted"
HELD = {
    "QLinearMatMul": _ROUNDED, "QGemm": _ROUNDED, "QLinearConv": _CONV, "ConvInteger": _CONV,
    "MatMulBnb4": _TABLE, "MatMulFpQ4": "its blocks lie in a form of ONNX Runtime's own",
    "QAttention": "what is made of its outputs stays inside the operator",
    "QMoE": "which tokens an expert sees differs between the models", "GemmFloat8": "floats of 8 bits are no even grid",
}  # fmt: skip
"""Operators that take quantised weights themselves and are not re-fitted: why not."""

_NARROW = frozenset({
    *RANGES, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E5M2FNUZ,
    ir.DataType.FLOAT4E2M1, ir.DataType.INT16, ir.DataType.UINT16,
})  # fmt: skip


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
        if node.op_type not in ("Constant", "Identity"):
            yield node
        pending.extend(inputs_of(node))

"""Lowering of GatedRMSNorm: a norm over groups of the last axis, then the gate."""

from __future__ import annotations

import onnx_ir as ir

from dynorm_onnx.graph.edit.emit import remove_dead
from dynorm_onnx.graph.lower.canonical import Lowering
from dynorm_onnx.graph.lower.lowered_norm import LoweredNorm
from dynorm_onnx.graph.norm_site import NormSite


def lower_gated(lowering: Lowering, site: NormSite) -> LoweredNorm:
    """Groups of `site.channels` as rows, the norm, the shape back, times the gate's activation in float32."""
    (node,) = site.nodes
    emit = lowering.emitter(site, node)
    x, gate = node.inputs[0], node.inputs[2]
    assert x is not None and gate is not None and site.channels is not None
    y = node.outputs[0]
    groups = emit.op(
        "Reshape", [x, emit.integers([-1, site.channels], "groups_shape")], output="groups", dtype=site.dtype
    )
    groups.shape = ir.Shape([None, site.channels])
    lowered, normed = lowering.norm(site, emit, groups, lowering.current(site.weight), None)
    shape = emit.op("Shape", [x], output="shape", dtype=ir.DataType.INT64)
    normed = emit.op("Reshape", [normed, shape], output="normed", like=x, dtype=site.dtype)
    # The operator works in float32 up to the result, gate included.
    wide_gate = emit.op("Cast", [gate], {"to": ir.DataType.FLOAT.value}, output="wide_gate", like=gate)
    wide_gate.type = ir.TensorType(ir.DataType.FLOAT)
    activated = emit.op("Sigmoid", [wide_gate], output="sigmoid", like=wide_gate)
    activation = node.attributes.get("activation")
    if activation is None or activation.as_string() != "sigmoid":
        activated = emit.op("Mul", [wide_gate, activated], output="silu", like=wide_gate)
    product = emit.op(
        "Mul",
        [emit.cast(normed, ir.DataType.FLOAT, "wide_normed"), activated],
        output="gated",
        like=wide_gate,
    )
    lowering.take_over(y, emit.cast(product, site.dtype, "narrow_gated"))
    remove_dead([node])
    return lowered

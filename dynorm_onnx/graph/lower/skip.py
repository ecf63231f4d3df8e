"""Lowering of SkipLayerNormalization and SkipSimplifiedLayerNormalization: the sum, then the norm."""

from __future__ import annotations

import onnx_ir as ir

from dynorm_onnx.graph.edit.emit import remove_dead
from dynorm_onnx.graph.forms.fused import SUM_BIAS, SUM_OUTPUT
from dynorm_onnx.graph.lower.canonical import Lowering
from dynorm_onnx.graph.lower.lowered_norm import LoweredNorm
from dynorm_onnx.graph.norm_site import NormSite


def lower_skip(lowering: Lowering, site: NormSite) -> LoweredNorm:
    """input + bias + skip in standard operators; the skip last, so that the sum can become a Skip form."""
    (node,) = site.nodes
    emit = lowering.emitter(site, node)
    y = node.outputs[0]
    branch, skip = node.inputs[:2]
    assert branch is not None and skip is not None
    position = SUM_BIAS[node.op_type]
    bias = node.inputs[position] if len(node.inputs) > position else None
    if bias is not None:
        branch = emit.add(branch, bias, site.dtype, output="biased_input", like=branch)
    total = emit.add(branch, skip, site.dtype, output="sum", like=_shaped(branch, y))
    lowered, replacement = lowering.norm(site, emit, total, lowering.current(site.weight), lowering.current(site.bias))
    lowering.take_over(y, replacement)
    if len(node.outputs) > SUM_OUTPUT and node.outputs[SUM_OUTPUT].name:
        lowering.take_over(node.outputs[SUM_OUTPUT], total)
    remove_dead([node])
    return lowered


def _shaped(first: ir.Value, second: ir.Value) -> ir.Value:
    return first if first.shape is not None else second

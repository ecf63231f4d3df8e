"""Lowering of GroupQueryAttention with q and k norms: per-head norms in front, attention without them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from dynorm_onnx.graph.edit.emit import Emitter
from dynorm_onnx.graph.forms.fused import NORM_EPSILONS, NORM_WEIGHTS, SHARED_EPSILON
from dynorm_onnx.graph.lower.canonical import Lowering
from dynorm_onnx.graph.lower.lowered_norm import LoweredNorm
from dynorm_onnx.graph.norm_site import NormSite

_INPUTS = {"q": 0, "k": 1}
_HEADS = {"q": "num_heads", "k": "kv_num_heads"}


def lower_attention(lowering: Lowering, sites: Sequence[NormSite]) -> list[LoweredNorm]:
    """`sites` are the q norm and the k norm of one node: the operator takes both weights or none."""
    (node,) = sites[0].nodes
    _unpack(lowering.emitter(sites[0], node), node, sites[0], lowering.opset)
    lowered = [_lower_part(lowering, node, site) for site in sites]
    for site in sites:
        assert site.part is not None
        node.replace_input_with(NORM_WEIGHTS[site.part], None)
        node.attributes.pop(NORM_EPSILONS[site.part], None)
    node.attributes.pop(SHARED_EPSILON, None)
    while node.inputs[-1] is None:
        node.resize_inputs(len(node.inputs) - 1)
    return lowered


def _lower_part(lowering: Lowering, node: ir.Node, site: NormSite) -> LoweredNorm:
    """[B, S, heads * C] -> [B, S, heads, C], the norm, and back."""
    assert site.part is not None and site.channels is not None
    position, heads = _INPUTS[site.part], node.attributes[_HEADS[site.part]].as_int()
    emit = lowering.emitter(site, node)
    x = node.inputs[position]
    assert x is not None
    split = emit.integers([0, 0, heads, site.channels], "heads_shape")
    per_head = emit.op("Reshape", [x, split], output="heads", dtype=site.dtype)
    lead = [None, None] if x.shape is None else [*x.shape[:2]]
    per_head.shape = ir.Shape([*lead, heads, site.channels])
    lowered, y = lowering.norm(site, emit, per_head, lowering.current(site.weight), None)
    merged = emit.integers([0, 0, heads * site.channels], "merged_shape")
    node.replace_input_with(position, emit.op("Reshape", [y, merged], output="merged", like=x, dtype=site.dtype))
    return lowered


def _unpack(emit: Emitter, node: ir.Node, site: NormSite, opset: int) -> None:
    """Gives a node that reads q, k and v in one tensor three inputs instead."""
    if node.inputs[1] is not None:
        return
    assert site.channels is not None
    heads, kv_heads = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
    sizes = [count * site.channels for count in (heads, kv_heads, kv_heads)]
    outputs = ["query", "key", "value"]
    if opset >= 13:
        parts = emit.node("Split", [node.inputs[0], emit.integers(sizes, "sizes")], {"axis": -1}, outputs=outputs)
    else:
        parts = emit.node("Split", [node.inputs[0]], {"axis": -1, "split": sizes}, outputs=outputs)
    for position, value in enumerate(parts.outputs):
        value.type = ir.TensorType(site.dtype)
        node.replace_input_with(position, value)

"""Operators that normalise and are no norm of a token: named as near misses, with the reason."""

from __future__ import annotations

from dynorm_onnx.graph.norm_site import NearMiss
from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import is_op

REASONS = {
    "InstanceNormalization": "normalises each channel over its places",
    "GroupNormalization": "normalises groups of channels together with their places",
    "MeanVarianceNormalization": "normalises each channel over batch and places",
}


def find(index: GraphIndex) -> list[NearMiss]:
    """One near miss for every such node."""
    return [
        NearMiss(node.name or node.outputs[0].name or node.op_type, f"{node.op_type} {REASONS[node.op_type]}")
        for node in index.nodes
        if node.op_type in REASONS and (is_op(node, node.op_type) or node.domain == "com.microsoft")
    ]

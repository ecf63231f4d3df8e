"""Norms in pieces that are rounded between: recognised, to be named. What replaced one would leave the rounding out."""

from __future__ import annotations

import onnx_ir as ir

from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import is_quantiser


class AcrossQuantisation(GraphIndex):
    """An index to which a value that was quantised and dequantised again is the value itself."""

    across_quantisation = True

    def peel(self, value: ir.Value) -> ir.Value:
        """The value before all Casts, Identities and QuantizeLinear / DequantizeLinear; constants stay as they are."""
        value = super().peel(value)
        while is_quantiser(node := value.producer()) and node is not None:
            source = node.inputs[0]
            if source is None or self.is_constant(source):
                break
            value = super().peel(source)
        return value


def across_quantisation(index: GraphIndex) -> AcrossQuantisation | None:
    """The index of the same graph that looks across quantisation; None where there is none in it."""
    if not any(is_quantiser(node) for node in index.nodes):
        return None
    return AcrossQuantisation(index.graph, index.opset_imports, index.parent)

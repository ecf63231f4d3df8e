"""The linear layers that read a value, if nothing else does."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from dynorm_onnx.graph.fold.moves import axis_after
from dynorm_onnx.graph.linear.linear_layer import LinearLayer

# They move rows, or change their type, and do nothing else.
_MOVERS = frozenset({"Identity", "Cast", "Dropout", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"})
_MOVERS |= {"Gather", "Slice"}


def layers_reading(value: ir.Value, layers: Sequence[LinearLayer]) -> tuple[LinearLayer, ...] | str:
    """The layers that read [..., C] as their features, directly or behind nodes that only move rows.

    A sentence that says why not, where something else reads the value too.
    """
    by_node = {layer.node: layer for layer in layers}
    channels = value.shape[-1] if value.shape is not None and len(value.shape) else None
    found: list[LinearLayer] = []
    pending = [(value, -1)]
    while pending:
        current, axis = pending.pop()
        if current.is_graph_output():
            return f"'{current.name}' is an output of the graph"
        for node, position in current.uses():
            layer = by_node.get(node)
            after = None
            if node.domain == "" and node.op_type in _MOVERS and position == 0 and isinstance(channels, int):
                after = axis_after(node, position, axis, channels)
            if layer is not None and layer.x is current and _features(layer) == axis:
                found.append(layer)
            elif after is not None:
                pending.append((node.outputs[0], after))
            elif node.domain != "" or node.op_type not in ("Shape", "Size"):
                return f"{node.op_type} '{node.name}' reads it, which is no linear layer with weights of its own"
    return tuple(found) if found else "nothing reads it"


def _features(layer: LinearLayer) -> int | None:
    """The feature axis from the end, where that is known."""
    if layer.feature_axis < 0:
        return layer.feature_axis
    return None if layer.x.shape is None else layer.feature_axis - len(layer.x.shape)

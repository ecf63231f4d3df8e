"""Weights that a graph joins at run time, joined in the file: what reads them then reads one that can be re-fitted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.edit.emit import add_tensor, remove_dead
from dynorm_onnx.graph.values.fixed import is_fixed
from dynorm_onnx.graph.values.mapped import computed


def join_weights(graph: ir.Graph) -> None:
    """Takes out each Concat of initializers that nothing else reads. In place; the file does not grow by it."""
    for node in graph:
        if node.op_type != "Concat" or node.domain != "" or node.outputs[0].is_graph_output():
            continue
        parts = [
            value for value in node.inputs if value is not None and is_fixed(value) and value.const_value is not None
        ]
        if len(parts) < len(node.inputs) or any(len(value.uses()) > 1 for value in parts):
            continue
        tensors = [value.const_value for value in parts if value.const_value is not None]
        axis = node.attributes["axis"].as_int()
        joined, name = node.outputs[0], str(node.outputs[0].name)
        joined.name = f"{name}.before"
        ir.convenience.replace_all_uses_with(joined, add_tensor(graph, name, _joined(name, tensors, axis)))
        remove_dead([node])


def _joined(name: str, tensors: Sequence[ir.TensorProtocol], axis: int) -> ir.Tensor | ir.LazyTensor:
    shape = list(tensors[0].shape.numpy())
    shape[axis] = sum(int(tensor.shape.numpy()[axis]) for tensor in tensors)
    return computed(name, shape, tensors, lambda *arrays: np.concatenate(arrays, axis))

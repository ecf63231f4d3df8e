"""Sparse tensors made dense when a file is read: onnx-ir has none, and no norm's neighbour gains by being one."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from dynorm_onnx.errors import ModelError
from dynorm_onnx.graph.files.protos import graphs_of, nodes_of


def make_dense(model: onnx.ModelProto) -> None:
    """Turns sparse initializers and the sparse values of Constant nodes into dense ones, in bodies and functions too.

    Raises ModelError, naming the tensor, for indices that lie outside it or values that lie in another file.
    """
    for graph in graphs_of(model):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, sparse.values.name))
        graph.ClearField("sparse_initializer")
    for node in nodes_of(model):
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "sparse_value":
                tensor = _dense(attribute.sparse_tensor, node.output[0])
                attribute.Clear()
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                attribute.t.CopyFrom(tensor)


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    """By the format of SparseTensorProto: indices are [NNZ], places in the flattened tensor, or [NNZ, rank]."""
    dims = tuple(sparse.dims)
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(dims, values.dtype)
        if indices.ndim > 1:
            dense[tuple(indices.T)] = values
        else:
            dense.reshape(-1)[indices] = values
    except (IndexError, ValueError, OSError, MemoryError) as error:
        raise ModelError(f"The sparse tensor {name!r} of shape {list(dims)} cannot be read: {error}") from error
    return numpy_helper.from_array(dense, name)

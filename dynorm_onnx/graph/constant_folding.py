"""Weights that a graph computes from constants alone: cast, transposed, dequantised, plus one."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from dynorm_onnx.graph.fixed import RANDOM, is_fixed

logger = logging.getLogger(__name__)

_NARROW = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_TYPE_ONLY = frozenset({"Identity", "CastLike"})  # what type the array has is for the reader to say
# Where onnx's evaluator begins; earlier versions mean the same where they exist.
_EVALUATED_SINCE = {"DequantizeLinear": 19}


def constant_array(value: ir.Value, opset: int) -> np.ndarray | None:
    """The data of `value` if it follows from initializers and Constant nodes, else None.

    16-bit floats are widened to float32 and stay so: 1 + w keeps the bits that bfloat16 would lose.
    """
    if value.is_initializer():
        return _wide(value.const_value.numpy()) if value.const_value is not None and is_fixed(value) else None
    node = value.producer()
    if node is None or node.domain != "" or node.op_type in RANDOM:
        return None
    if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()):
        return None
    if node.op_type in _TYPE_ONLY or (node.op_type == "Cast" and _narrows(node)):
        return None if node.inputs[0] is None else constant_array(node.inputs[0], opset)
    inputs: list[np.ndarray | None] = []
    for source in node.inputs:
        array = None if source is None else constant_array(source, opset)
        if source is not None and array is None:
            return None
        inputs.append(array)
    return _evaluate(node, value.index() or 0, inputs, opset)


def _narrows(cast: ir.Node) -> bool:
    return ir.DataType(cast.attributes["to"].as_int()) in _NARROW


def _evaluate(node: ir.Node, output: int, inputs: list[np.ndarray | None], opset: int) -> np.ndarray | None:
    names = [f"in{i}" if array is not None else "" for i, array in enumerate(inputs)]
    outputs = [f"out{i}" for i in range(len(node.outputs))]
    proto = onnx.helper.make_node(node.op_type, names, outputs)
    proto.attribute.extend(ir.to_proto(attribute) for attribute in node.attributes.values())
    graph = onnx.helper.make_graph(
        [proto], "fold",
        [onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
         for n, a in zip(names, inputs, strict=True) if a is not None],
        [onnx.helper.make_empty_tensor_value_info(outputs[output])],
    )  # fmt: skip
    version = max(opset, _EVALUATED_SINCE.get(node.op_type, 0))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    try:
        return _wide(np.asarray(ReferenceEvaluator(model).run(None, feeds)[0]))
    except Exception as error:  # whatever onnx cannot run is no constant for us
        logger.debug("folding %s %s failed", node.op_type, node.name, exc_info=error)
        return None


def _wide(array: np.ndarray) -> np.ndarray:
    try:
        narrow = ir.DataType.from_numpy(array.dtype) in _NARROW
    except TypeError:
        return array
    return array.astype(np.float32) if narrow else array

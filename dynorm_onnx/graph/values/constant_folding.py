"""Weights that a graph computes from constants alone: cast, transposed, dequantised, plus one."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from dynorm_onnx.graph.values.fixed import RANDOM, is_fixed

logger = logging.getLogger(__name__)

_NARROW = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_TYPE_ONLY = frozenset({"Identity", "CastLike"})  # what type the array has is for the reader to say
# Where onnx's evaluator begins; earlier versions mean the same where they exist.
_EVALUATED_SINCE = {"DequantizeLinear": 19}


def constant_array(value: ir.Value, opset: int) -> np.ndarray | None:
    """The data of `value` if it follows from initializers and Constant nodes, else None.

    16-bit floats are widened to float32 and stay so: 1 + w keeps the bits that bfloat16 would lose.
    """
    known: dict[ir.Value, np.ndarray | None] = {}
    pending = [value]
    while pending:  # not by recursion: files hold chains of constants longer than Python's stack
        current = pending[-1]
        operands = _operands(current)
        unknown = next((v for v in operands if v not in known), None)
        if unknown is not None and all(known[v] is not None for v in operands if v in known):
            pending.append(unknown)
            continue
        pending.pop()
        arrays = [known.get(v) for v in operands]
        known[current] = None if any(array is None for array in arrays) else _folded(current, known, opset)
    return known[value]


def _operands(value: ir.Value) -> tuple[ir.Value, ...]:
    """The values whose data decides that of `value`; none of what is no fold of others."""
    node = value.producer()
    if value.is_initializer() or node is None or not _can_fold(node):
        return ()
    read = node.inputs[:1] if _is_passed_on(node) else node.inputs
    return tuple(source for source in read if source is not None)


def _folded(value: ir.Value, known: Mapping[ir.Value, np.ndarray | None], opset: int) -> np.ndarray | None:
    """The data of a value whose operands are `known`, all of them constants."""
    if value.is_initializer():
        return _wide(value.const_value.numpy()) if value.const_value is not None and is_fixed(value) else None
    node = value.producer()
    if node is None or not _can_fold(node):
        return None
    if _is_passed_on(node):
        return None if node.inputs[0] is None else known[node.inputs[0]]
    inputs = [None if source is None else known[source] for source in node.inputs]
    return _evaluate(node, value.index() or 0, inputs, opset)


def _can_fold(node: ir.Node) -> bool:
    bodies = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return (
        node.domain == "" and node.op_type not in RANDOM and all(a.type not in bodies for a in node.attributes.values())
    )


def _is_passed_on(node: ir.Node) -> bool:
    """Whether it gives its first operand's data as it is, in another type perhaps."""
    return node.op_type in _TYPE_ONLY or (node.op_type == "Cast" and _narrows(node))


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

"""What kind of node the finders of norms have before them, by the name of its operator."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dynorm_onnx.graph.values.reads import bodies_of

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
LARGEST_RANK = 64
"""The most axes that numpy knows: an axis beyond it belongs to no tensor."""

SHAPE_ONLY = {"Shape", "Size"}
QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
TOLD_A_SHAPE = ("Reshape", "Expand", "ConstantOfShape")


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether the node is one of these operators of the default domain."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types


def is_quantiser(node: ir.Node | None) -> bool:
    """Whether the node rounds to whole numbers, or makes floats of them; also those of ONNX Runtime itself."""
    return node is not None and node.op_type in QUANTISERS and node.domain in ("", "ai.onnx", "com.microsoft")


def data_inputs(node: ir.Node) -> Iterator[ir.Value]:
    """All values whose numbers a node reads, those that its bodies read from outside included."""
    read = node.inputs[:1] if is_op(node, "CastLike") else () if is_op(node, *SHAPE_ONLY) else node.inputs
    yield from (value for value in read if value is not None)
    for _, body in bodies_of(node):
        for inner in body.all_nodes():
            for value in inner.inputs:
                if value is not None and value.graph is not body:
                    yield value

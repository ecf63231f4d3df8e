"""Gemm behind attention: it reads matrices, and what attention gives has three dimensions."""

from __future__ import annotations

import onnx_ir as ir

_ATTENTION = ("com.microsoft", "MultiHeadAttention")


def flatten_rows(graph: ir.Graph) -> None:
    """Makes each Gemm that reads attention itself read its rows, [tokens, channels], by a Flatten. In place.

    onnxscript (0.7) fuses `Transpose -> Reshape` to MultiHeadAttention, which gives [batch, sequence, channels], also
    where the Reshape gave [tokens, channels]; so does GPT-2's, once two Reshapes in a row have become one.
    """
    for node in graph:
        read = node.inputs[0] if (node.domain, node.op_type) == ("", "Gemm") else None
        attention = None if read is None else read.producer()
        if read is None or attention is None or (attention.domain, attention.op_type) != _ATTENTION:
            continue
        rows = ir.Node("", "Flatten", [read], [ir.AttrInt64("axis", 2)], name=f"{attention.name}.rows")
        rows.outputs[0].name = f"{read.name}.rows"
        rows.outputs[0].type, rows.outputs[0].shape = read.type, read.shape
        read.shape = None  # that of the rows
        node.replace_input_with(0, rows.outputs[0])
        graph.insert_before(node, rows)

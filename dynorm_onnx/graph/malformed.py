"""Nodes that lack what their operator reads: no runtime loads them, and no finder has to expect them."""

from __future__ import annotations

import onnx_ir as ir
from onnx import defs

from dynorm_onnx.errors import ModelError

_REQUIRED = (defs.OpSchema.FormalParameterOption.Single,)
# ONNX Runtime's own norms, which onnx has no schema of: the inputs that must be there, and how many there may be.
_OWN: dict[str, tuple[tuple[int, ...], int]] = {
    "SimplifiedLayerNormalization": ((0, 1), 2),
    "LayerNormalization": ((0, 1), 3),
    "SkipLayerNormalization": ((0, 1, 2), 5),
    "SkipSimplifiedLayerNormalization": ((0, 1, 2), 4),
    "EmbedLayerNormalization": ((0, 2, 3, 5, 6), 9),
    "GroupQueryAttention": ((0,), 100),  # still grows
    "GatedRMSNorm": ((0, 1, 2), 3),
}


def refuse_malformed(model: ir.Model) -> None:
    """Raises ModelError, naming the node and the input, for a node with too few or too many inputs or outputs, or
    without one that it must have."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in graph.all_nodes():
            if node.op_identifier() not in model.functions:
                version = graph.opset_imports.get(node.domain, model.opset_imports.get(node.domain, 1))
                _refuse(node, version)


def _refuse(node: ir.Node, version: int) -> None:
    schema = _schema(node, version)
    if schema is not None:
        required = [place for place, formal in enumerate(schema.inputs) if formal.option in _REQUIRED]
        least, most = schema.min_input, schema.max_input
        outputs = schema.min_output, schema.max_output
    elif node.domain in ("", "com.microsoft") and node.op_type in _OWN:
        required, most = list(_OWN[node.op_type][0]), _OWN[node.op_type][1]
        least, outputs = required[-1] + 1, (1, 100)
    else:
        return
    what = f"the node {node.name or next((v.name for v in node.outputs), '')!r} ({node.op_type})"
    for count, bounds, noun in ((len(node.inputs), (least, most), "inputs"), (len(node.outputs), outputs, "outputs")):
        if not bounds[0] <= count <= bounds[1]:
            wanted = bounds[0] if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"
            wanted = wanted if bounds[1] < 100 else f"at least {bounds[0]}"
            raise ModelError(f"{what} has {count} {noun}, where its operator has {wanted}")
    for place in required:
        if place < len(node.inputs) and node.inputs[place] is None:
            raise ModelError(f"{what} has no input {place}, which its operator needs")


def _schema(node: ir.Node, version: int) -> defs.OpSchema | None:
    """What onnx knows of an operator in this version, or, where that lacks it, in the newest; None for no operator of
    onnx, or one of a version newer than onnx itself."""
    known = defs.onnx_opset_version()
    if node.domain != "" or version > known or not defs.has(node.op_type, known):
        return None
    if defs.has(node.op_type, version):
        return defs.get_schema(node.op_type, version)
    return defs.get_schema(node.op_type, known)

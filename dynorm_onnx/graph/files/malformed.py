"""Nodes that lack what their operator reads, or have it in another type: no runtime loads them, and no finder has to
expect them."""

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
_INT, _INTS, _FLOAT = ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.FLOAT
# Of ONNX Runtime's own operators, the attributes that are read here; each has one type wherever it occurs.
_OWN_ATTRIBUTES = {
    **dict.fromkeys(("axis", "num_heads", "kv_num_heads", "K", "N", "bits", "block_size", "weight_prepacked"), _INT),
    **dict.fromkeys(("transA", "transB", "transBatchA", "transBatchB"), _INT),
    **dict.fromkeys(("epsilon", "alpha", "beta"), _FLOAT),
    "qkv_hidden_sizes": _INTS,
}
_OWN_NEEDS = {
    "Attention": ("num_heads",),
    "QAttention": ("num_heads",),
    "MultiHeadAttention": ("num_heads",),
    "GroupQueryAttention": ("num_heads", "kv_num_heads"),
    "MatMulNBits": ("K", "N", "block_size"),
}
_INTEGERS = {"tensor(int32)", "tensor(int64)"}


def refuse_malformed(model: ir.Model) -> None:
    """Raises ModelError, naming the node and what it is about: too few or too many inputs or outputs, an input or an
    attribute that must be there and is not, an attribute of another type, numbers that should be integers."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in graph.all_nodes():
            if node.op_identifier() not in model.functions:
                version = graph.opset_imports.get(node.domain, model.opset_imports.get(node.domain, 1))
                schema = _schema(node, version)
                _refuse_by_number(node, schema)
                _refuse_by_attributes(node, schema)
                _refuse_by_type(node, schema)


def _spelled(node: ir.Node) -> str:
    return f"the node {node.name or next((v.name for v in node.outputs), '')!r} ({node.op_type})"


def _refuse_by_number(node: ir.Node, schema: defs.OpSchema | None) -> None:
    if schema is not None:
        required = [place for place, formal in enumerate(schema.inputs) if formal.option in _REQUIRED]
        least, most = schema.min_input, schema.max_input
        outputs = schema.min_output, schema.max_output
    elif node.domain in ("", "com.microsoft") and node.op_type in _OWN:
        required, most = list(_OWN[node.op_type][0]), _OWN[node.op_type][1]
        least, outputs = required[-1] + 1, (1, 100)
    else:
        return
    what = _spelled(node)
    for count, bounds, noun in ((len(node.inputs), (least, most), "inputs"), (len(node.outputs), outputs, "outputs")):
        if not bounds[0] <= count <= bounds[1]:
            wanted = bounds[0] if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"
            wanted = wanted if bounds[1] < 100 else f"at least {bounds[0]}"
            raise ModelError(f"{what} has {count} {noun}, where its operator has {wanted}")
    for place in required:
        if place < len(node.inputs) and node.inputs[place] is None:
            raise ModelError(f"{what} has no input {place}, which its operator needs")


def _refuse_by_attributes(node: ir.Node, schema: defs.OpSchema | None) -> None:
    own = node.domain == "com.microsoft" or node.op_type in _OWN
    if schema is not None:
        types = {name: ir.AttributeType(int(formal.type.value)) for name, formal in schema.attributes.items()}
        needed = [name for name, formal in schema.attributes.items() if formal.required]
    elif node.domain in ("", "com.microsoft") and own:
        types, needed = _OWN_ATTRIBUTES, list(_OWN_NEEDS.get(node.op_type, ()))
    else:
        return
    for name in needed:
        if name not in node.attributes:
            raise ModelError(f"{_spelled(node)} lacks the attribute {name!r}")
    for name, attribute in node.attributes.items():
        if attribute.type != types.get(name, attribute.type):
            what, wanted = f"the attribute {name!r} of {_spelled(node)}", types[name].name
            raise ModelError(f"{what} has type {attribute.type.name}; its operator wants {wanted}")


def _refuse_by_type(node: ir.Node, schema: defs.OpSchema | None) -> None:
    """Axes, shapes and positions alone: of other types ONNX Runtime knows more than some schemas."""
    for value, formal in zip(node.inputs, schema.inputs if schema is not None else (), strict=False):
        if value is None or value.dtype is None or not formal.types <= _INTEGERS:
            continue
        if value.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
            what = f"the input {formal.name!r} of {_spelled(node)}"
            raise ModelError(f"{what} is of type {value.dtype.name}; its operator wants integers")


def _schema(node: ir.Node, version: int) -> defs.OpSchema | None:
    """What onnx knows of an operator in this version, or, where that lacks it, in the newest; None for no operator of
    onnx, or one of a version newer than onnx itself."""
    known = defs.onnx_opset_version()
    if node.domain != "" or version > known or not defs.has(node.op_type, known):
        return None
    if defs.has(node.op_type, version):
        return defs.get_schema(node.op_type, version)
    return defs.get_schema(node.op_type, known)

"""Nodes that lack what their operator reads, or have it in another type: no runtime loads them, and no finder has to
expect them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

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


@dataclasses.dataclass(frozen=True)
class _Signature:
    """What a node of an operator must have: so many inputs and outputs, at least and at most (None: that is not known);
    the inputs that may not be left out; attributes, and the types of those that it may have; and the names of inputs
    that must be integers, by their place."""

    inputs: tuple[int, int] | None = None
    outputs: tuple[int, int] = (1, 100)
    required: tuple[int, ...] = ()
    needed: tuple[str, ...] = ()
    types: Mapping[str, ir.AttributeType] = dataclasses.field(default_factory=dict)
    integers: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of_schema(cls, schema: defs.OpSchema) -> _Signature:
        """Axes, shapes and positions alone must be integers: of other types ONNX Runtime knows more than some
        schemas."""
        attributes = schema.attributes.items()
        return cls(
            (schema.min_input, schema.max_input),
            (schema.min_output, schema.max_output),
            tuple(place for place, formal in enumerate(schema.inputs) if formal.option in _REQUIRED),
            tuple(name for name, formal in attributes if formal.required),
            {name: ir.AttributeType(int(formal.type.value)) for name, formal in attributes},
            {place: formal.name for place, formal in enumerate(schema.inputs) if formal.types <= _INTEGERS},
        )

    @classmethod
    def of_own(cls, op_type: str) -> _Signature:
        """Of ONNX Runtime's own operators."""
        required, most = _OWN.get(op_type, ((), 0))
        inputs = (required[-1] + 1, most) if required else None
        return cls(inputs, required=required, needed=_OWN_NEEDS.get(op_type, ()), types=_OWN_ATTRIBUTES)


@functools.cache
def _signature(domain: str, op_type: str, version: int) -> _Signature | None:
    """By onnx in this version or, where that lacks the operator, in the newest; None for an operator that is neither
    onnx's nor ONNX Runtime's, or one of a version newer than onnx itself."""
    known = defs.onnx_opset_version()
    if domain == "" and version <= known and defs.has(op_type, known):
        return _Signature.of_schema(defs.get_schema(op_type, version if defs.has(op_type, version) else known))
    if domain == "com.microsoft" or (domain == "" and op_type in _OWN):
        return _Signature.of_own(op_type)
    return None


def refuse_malformed(model: ir.Model) -> None:
    """Raises ModelError, naming the node and what it is about: too few or too many inputs or outputs, an input or an
    attribute that must be there and is not, an attribute of another type, numbers that should be integers."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in graph.all_nodes():
            if node.op_identifier() not in model.functions:
                version = graph.opset_imports.get(node.domain, model.opset_imports.get(node.domain, 1))
                signature = _signature(node.domain, node.op_type, version)
                if signature is not None:
                    _refuse_by_number(node, signature)
                    _refuse_by_attributes(node, signature)
                    _refuse_by_type(node, signature)


def _spelled(node: ir.Node) -> str:
    return f"the node {node.name or next((v.name for v in node.outputs), '')!r} ({node.op_type})"


def _refuse_by_number(node: ir.Node, signature: _Signature) -> None:
    if signature.inputs is None:
        return
    counted = ((len(node.inputs), signature.inputs, "inputs"), (len(node.outputs), signature.outputs, "outputs"))
    for count, (least, most), noun in counted:
        if not least <= count <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            wanted = wanted if most < 100 else f"at least {least}"
            raise ModelError(f"{_spelled(node)} has {count} {noun}, where its operator has {wanted}")
    for place in signature.required:
        if place < len(node.inputs) and node.inputs[place] is None:
            raise ModelError(f"{_spelled(node)} has no input {place}, which its operator needs")


def _refuse_by_attributes(node: ir.Node, signature: _Signature) -> None:
    for name in signature.needed:
        if name not in node.attributes:
            raise ModelError(f"{_spelled(node)} lacks the attribute {name!r}")
    for name, attribute in node.attributes.items():
        wanted = signature.types.get(name, attribute.type)
        if attribute.type != wanted:
            what = f"the attribute {name!r} of {_spelled(node)}"
            raise ModelError(f"{what} has type {attribute.type.name}; its operator wants {wanted.name}")


def _refuse_by_type(node: ir.Node, signature: _Signature) -> None:
    for place, name in signature.integers.items():
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is None or value.dtype is None:
            continue
        if value.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
            what = f"the input {name!r} of {_spelled(node)}"
            raise ModelError(f"{what} is of type {value.dtype.name}; its operator wants integers")

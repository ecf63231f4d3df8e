"""Damage that a file shows before anything is made of it: tensors not as large as they say, functions without end.

What reads them later would fail far from the cause, fill the memory, or take the data of another tensor.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import onnx
import onnx_ir as ir

from dynorm_onnx.errors import ModelError
from dynorm_onnx.graph.files.protos import graphs_in, graphs_of, nodes_of, spelled, tensors_of

MOST_NODES = 1_000_000
"""Of a model whose functions are written out."""

_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_LARGEST_FILE = 1 << 62
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)

_Key = tuple[str, str, str]
"""Domain, name and overload of a function."""


def refuse_damaged(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Raises ModelError, naming the tensor or function, for what is damaged.

    That is: names that are no text; attributes without a name or a type; a tensor with a negative size, with more or
    less data than its shape needs, or with an offset or length that is no number of bytes; functions that call
    themselves, and those that come to more than MOST_NODES nodes when written out.
    """
    if any(isinstance(text, bytes) for text in _texts(proto)):  # what protobuf makes of text that is none
        raise ModelError(f"{path}: is not a valid ONNX model: a name in it is no UTF-8 text")
    problem = next((said for tensor in tensors_of(proto) if (said := _wrong_with(tensor)) is not None), None)
    problem = problem or next((said for node in nodes_of(proto) if (said := _wrong_with_attributes(node))), None)
    problem = problem or _wrong_with_functions(proto)
    if problem is not None:
        raise ModelError(f"{path}: is not a valid ONNX model: {problem}")


def _texts(proto: onnx.ModelProto) -> Iterator[str | bytes]:
    """All that names something."""
    for entry in proto.opset_import:
        yield entry.domain
    for function in proto.functions:
        yield from (function.name, function.domain, *function.input, *function.output, *function.attribute)
    for graph in graphs_of(proto):
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield from (value.name, *(size.dim_param for size in value.type.tensor_type.shape.dim))
        yield from (tensor.name for tensor in graph.initializer)
    for node in nodes_of(proto):
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _wrong_with(tensor: onnx.TensorProto) -> str | None:
    dims, name = list(tensor.dims), f"the tensor {tensor.name!r} of shape {list(tensor.dims)}"
    if any(size < 0 for size in dims):
        return f"{name} has a negative size"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        places = {entry.key: entry.value for entry in tensor.external_data}
        for key in ("offset", "length"):
            text = places.get(key, "0")
            if not (text.isascii() and text.isdigit() and int(text) < _LARGEST_FILE):
                return f"the {key} of {name} is {text!r}, no number of bytes"
        return None
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        return None  # onnx-ir says so
    if dtype == ir.DataType.UNDEFINED:
        return f"{name} has no type"
    count = math.prod(dims)
    needed = math.ceil(count * dtype.itemsize) if dtype != ir.DataType.STRING else count
    held = {field: len(getattr(tensor, field)) for field in _FIELDS}
    if len(tensor.raw_data):
        if len(tensor.raw_data) != needed:
            return f"{name} needs {needed} bytes, and the file has {len(tensor.raw_data)}"
    elif any(held.values()):  # of none at all, require_weights() says so
        numbers = 2 * count if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128) else count
        if max(held.values()) not in {numbers, needed}:  # types of less than a byte are packed
            return f"{name} needs {numbers} numbers, and the file has {max(held.values())}"
    return None


def _wrong_with_attributes(node: onnx.NodeProto) -> str | None:
    """A type is required of every attribute since version 2 of the format, of the year 2017; and what walks through
    bodies does not follow those that a function's caller gives."""
    for attribute in node.attribute:
        if attribute.ref_attr_name and attribute.type in _GRAPHS:
            return f"the attribute {attribute.name!r} of {spelled(node)} is a graph, and left to the function's caller"
        if not attribute.name or attribute.type == onnx.AttributeProto.UNDEFINED:
            return f"an attribute of {spelled(node)} has no name or no type"
    return None


def _wrong_with_functions(proto: onnx.ModelProto) -> str | None:
    """That one calls itself, or that they come to too many nodes."""
    bodies = {(function.domain, function.name, function.overload): function.node for function in proto.functions}
    sizes: dict[_Key, int] = {}
    calls = {key: _calls(nodes, bodies.keys()) for key, nodes in bodies.items()}
    while len(sizes) < len(bodies):
        ready = [key for key, called in calls.items() if key not in sizes and called.keys() <= sizes.keys()]
        if not ready:
            name = next(key[1] for key in bodies if key not in sizes)
            return f"the function {name!r} calls itself, or one that does"
        for key in ready:
            sizes[key] = len(bodies[key]) + sum(times * sizes[called] for called, times in calls[key].items())
    total = sum(times * sizes[key] for key, times in _calls(proto.graph.node, bodies.keys()).items())
    return None if total <= MOST_NODES else f"its functions come to {total:,} nodes, more than {MOST_NODES:,}"


def _calls(nodes: Sequence[onnx.NodeProto], functions: Collection[_Key]) -> Counter[_Key]:
    """How often nodes and the bodies in them call each function."""
    inside = (node for graph in graphs_in(nodes) for node in graph.node)
    return Counter(
        key for node in (*nodes, *inside) if (key := (node.domain, node.op_type, node.overload)) in functions
    )

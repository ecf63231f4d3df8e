"""The nodes of one site as a small model of its own, so that it can be run by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from dynorm_onnx.graph.norm_site import NormSite
from dynorm_onnx.graph.values.index import GraphIndex

IR_VERSION = 10  # new enough for opset 23, old enough for every ONNX Runtime of the last years
DEFAULT_OPSET = 17
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class Extract:
    """A model with the site's y as its one output.

    `inputs` names its inputs: the site's x, weight, bias, and whatever else the nodes read (only the
    shapes of these matter). Half precision became float, so that only the formula is judged, not its
    rounding, and so that any runtime can run it.
    """

    model: onnx.ModelProto
    inputs: dict[str, ir.Value]


def extract(index: GraphIndex, site: NormSite) -> Extract:
    """The covered nodes of a decomposed site, with the constants and the shape arithmetic they need."""
    assert site.x is not None and site.y is not None
    names: dict[ir.Value, str] = {}
    initializers: list[onnx.TensorProto] = []
    inputs: dict[str, ir.Value] = {}
    fed = {value for value in (site.x, site.weight, site.bias) if value is not None}

    def name(value: ir.Value) -> str:
        return names.setdefault(value, f"v{len(names)}")

    nodes = _with_sources(index, site.nodes, fed)
    produced = {output for node in nodes for output in node.outputs}
    for value in _read_by(nodes):
        data = None if value in fed else index.constant(value)
        if data is not None:
            initializers.append(numpy_helper.from_array(_widened(data), name(value)))
        elif value not in produced or value in fed:
            inputs[name(value)] = value
    protos = [_proto(node, name) for node in nodes if not all(o in fed for o in node.outputs)]
    domains = {node.domain for node in nodes} | {""}
    graph = helper.make_graph(
        protos,
        "site",
        [helper.make_tensor_value_info(n, tensor_type(index, v), None) for n, v in inputs.items()],
        [onnx.ValueInfoProto(name=name(site.y))],
        initializers,
    )
    opsets = [helper.make_opsetid(d, index.opset(d) or (1 if d else DEFAULT_OPSET)) for d in sorted(domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    return Extract(model, inputs)


def tensor_type(index: GraphIndex, value: ir.Value) -> int:
    """The ONNX element type that the value has in the extracted model."""
    dtype = index.dtype(value)
    kind = TensorProto.FLOAT if dtype is None else int(dtype)
    return TensorProto.FLOAT if kind in _HALVES else kind


def _read_by(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    return list(dict.fromkeys(i for node in nodes for i in node.inputs if i is not None))


def _with_sources(index: GraphIndex, nodes: Iterable[ir.Node], fed: set[ir.Value]) -> list[ir.Node]:
    """The nodes and those that compute shapes and small tensors for them; never beyond what is fed.

    A Shape of some other activation ends the way there: that activation becomes an input.
    """
    found = set(nodes)
    pending = list(found)
    while pending:
        node = pending.pop()
        for value in node.inputs:
            source = value.producer() if value is not None else None
            if value is None or source is None or value in fed or source in found or source not in index:
                continue
            if index.constant(value) is None and node.op_type not in ("Shape", "Size"):
                found.add(source)
                pending.append(source)
    return sorted(found, key=index.position)


def _proto(node: ir.Node, name: Callable[[ir.Value], str]) -> onnx.NodeProto:
    proto = ir.serde.serialize_node(node)
    plain = onnx.NodeProto(op_type=proto.op_type, domain=proto.domain, attribute=proto.attribute)
    plain.input.extend("" if i is None else name(i) for i in node.inputs)
    plain.output.extend(name(o) for o in node.outputs)
    for attribute in plain.attribute:
        if attribute.name == "to" and plain.op_type == "Cast" and attribute.i in _HALVES:
            attribute.i = TensorProto.FLOAT
        if attribute.type == onnx.AttributeProto.TENSOR:
            widened = _widened(numpy_helper.to_array(attribute.t))
            attribute.t.CopyFrom(numpy_helper.from_array(widened))
    return plain


def _widened(data: np.ndarray) -> np.ndarray:
    """Half precision as float32, all else as it is."""
    narrow = data.dtype.itemsize == 2 and not np.issubdtype(data.dtype, np.integer)
    return data.astype(np.float32) if narrow else data

"""Types and shapes of values, inferred."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from dynorm_onnx.graph.quiet import without_tracebacks
from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import TOLD_A_SHAPE

# Operators that onnx does not know, or whose result's type it gets wrong: the outputs that are shaped
# like their first input.
_SHAPE_KEEPERS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "RMSNormalization"): (0,),
    ("", "SimplifiedLayerNormalization"): (0,),
    ("", "LayerNormalization"): (0,),
    ("com.microsoft", "SkipLayerNormalization"): (0, 3),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): (0, 3),
    ("com.microsoft", "GatedRMSNorm"): (0,),
    ("com.microsoft", "MultiHeadAttention"): (0,),
    ("com.microsoft", "BiasGelu"): (0,),
    ("com.microsoft", "FastGelu"): (0,),
    ("com.microsoft", "QuickGelu"): (0,),
    ("com.microsoft", "Gelu"): (0,),
    ("com.microsoft", "RotaryEmbedding"): (0,),
}


def infer_shapes(model: ir.Model) -> None:
    """Types and shapes of all values, as far as that goes; in place.

    onnx's inference, on a stand-in where Identity tells it what shape-keeping operators keep. It says nothing of a
    Reshape whose target is computed; the number of sizes there says the rank, and then onnx goes on from it.
    """
    if not any(_keeps(model, node) for node in model.graph.all_nodes()):
        _infer(model)
        return
    stand_in = model.clone()
    for node in list(stand_in.graph.all_nodes()):
        for output in _keeps(model, node):
            _read_through(node, output)
    _infer(stand_in)
    for graph, inferred in zip(model.graphs(), stand_in.graphs(), strict=True):
        known = ir.convenience.create_value_mapping(inferred)
        for name, value in ir.convenience.create_value_mapping(graph).items():
            if name in known:
                value.shape = known[name].shape
                value.type = known[name].type


def _keeps(model: ir.Model, node: ir.Node) -> list[ir.Value]:
    """The outputs of the node that are shaped like its first input, where onnx does not say so."""
    places = _SHAPE_KEEPERS.get((node.domain, node.op_type), ())
    return [] if node.op_identifier() in model.functions else [node.outputs[i] for i in places if i < len(node.outputs)]


def _infer(model: ir.Model) -> None:
    infer = ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)
    with without_tracebacks():
        infer(model)
        while _shape_by_sizes(model):  # each round knows the shape of at least one value more
            infer(model)


def _shape_by_sizes(model: ir.Model) -> bool:
    """Gives the results of nodes that are told a shape what is known of it; whether any had none."""
    grown = False
    for graph in model.graphs():
        told = [node.outputs[0] for node in graph if node.op_type in TOLD_A_SHAPE and node.outputs]
        unknown = [value for value in told if value.shape is None]
        if not unknown:  # an index goes through the whole graph
            continue
        index = GraphIndex(graph, model.opset_imports)
        for value in unknown:
            shape = index.shape(value)
            if shape is not None:
                value.shape = ir.Shape(shape)
                grown = True
    return grown


def _read_through(node: ir.Node, output: ir.Value) -> None:
    """Lets the readers of `output` read the node's first input instead, under the same name.

    The result of a norm that is a standard operator has the type of its scale.
    """
    assert node.graph is not None
    scale = node.inputs[1] if node.domain == "" and len(node.inputs) > 1 else None
    attributes = [] if scale is None or scale.dtype is None else [ir.AttrInt64("to", scale.dtype.value)]
    op_type = "Cast" if attributes else "Identity"
    copy = ir.Node("", op_type, [node.inputs[0]], attributes, name=f"{node.name}.{output.index()}")
    copy.outputs[0].name, output.name = output.name, f"{output.name}.kept"
    copy.outputs[0].shape, copy.outputs[0].type = output.shape, output.type
    output.replace_all_uses_with(copy.outputs[0], replace_graph_outputs=True)
    node.graph.insert_after(node, copy)

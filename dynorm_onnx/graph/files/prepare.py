"""A model as found in the wild -> one that finding and lowering can work on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from dynorm_onnx.errors import ModelError
from dynorm_onnx.graph.edit.emit import add_initializer
from dynorm_onnx.graph.edit.unique_names import Names
from dynorm_onnx.graph.files.malformed import refuse_malformed
from dynorm_onnx.graph.values.fixed import is_fixed, without_constant_inputs
from dynorm_onnx.graph.values.shapes import infer_shapes

logger = logging.getLogger(__name__)

TellTypes = Callable[[ir.Model, Sequence[str]], Mapping[str, ir.TypeAndShape]]
"""(a model, names of values of its main graph) -> the types and shapes that are known, by name."""

# For files that import no default opset (all their nodes are ONNX Runtime's): new enough for
# LayerNormalization, old enough for every ONNX Runtime that runs those nodes.
DEFAULT_OPSET = 17
STANDARD_NAMES = ("", "ai.onnx")  # two spellings of one domain

# The steps that make up a norm; a local function with one of them may hide a norm.
_REDUCTIONS = frozenset(
    {"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "LpNormalization", "BatchNormalization"}
)
_AXES_INPUT_SINCE = {"ReduceSum": 13} | dict.fromkeys(
    ("ReduceMean", "ReduceSumSquare", "ReduceL2", "ReduceL1", "ReduceMax", "ReduceMin"), 18
)


def clone(model: ir.Model) -> ir.Model:
    """A copy of `model` with its own graphs, nodes and values; the tensors are shared."""
    copy = model.clone()
    copy.meta.update(model.meta)
    return copy


def prepare(model: ir.Model, tell_types: TellTypes | None = None) -> ir.Model:
    """A clone of `model` in which norms can be found and replaced; it computes the same.

    Local functions that hold a norm are inlined, domains in use are imported, reductions that carry
    `axes` in the place where their opset no longer has it are mended, what reads a copy of an
    initializer reads the initializer, every node has a name of its own, and types and shapes are
    inferred as far as that goes. Weights are not read. `tell_types` is asked of the values that are
    left without a type: behind operators that onnx does not know. Raises ModelError for a node that
    lacks what its operator reads.
    """
    copy = clone(model)
    without_constant_inputs(copy)
    _import_domains(copy)
    refuse_malformed(copy)
    _inline_norm_functions(copy)
    _mend_reductions(copy)
    _read_originals(copy.graph)
    _name_nodes(copy)
    infer_shapes(copy)
    if tell_types is not None and _take_types(copy, tell_types):
        infer_shapes(copy)  # bodies read what was untyped
    return copy


def _read_originals(graph: ir.Graph) -> None:
    """Takes out the Identity nodes of initializers that exporters write where they store equal weights once: a weight
    behind one is a weight, and one with several readers is shared, as those who re-fit or turn weights must see."""
    for node in graph:
        if node.op_type != "Identity" or node.domain != "":
            continue
        original, read = node.inputs[0], node.outputs[0]
        if original is None or not is_fixed(original) or read.is_graph_output():
            continue
        ir.convenience.replace_all_uses_with(read, original)
        graph.remove(node, safe=True)


def is_norm_name(op_type: str) -> bool:
    """Whether an operator is a norm, or holds one, by its name alone."""
    return "LayerNorm" in op_type or "RMSNorm" in op_type or "GroupQueryAttention" in op_type


def _import_domains(model: ir.Model) -> None:
    imports = model.graph.opset_imports
    if "ai.onnx" in imports:
        version = imports.pop("ai.onnx")
        imports.setdefault("", version)
    imports.setdefault("", DEFAULT_OPSET)
    for node in model.graph.all_nodes():
        imports.setdefault(node.domain, 1)
    for function in model.functions.values():
        if "ai.onnx" in function.opset_imports:
            function.opset_imports.setdefault("", function.opset_imports.pop("ai.onnx"))


def inline_functions(model: ir.Model, chosen: Collection[ir.OperatorIdentifier] | None = None) -> None:
    """Puts the bodies of local functions, those `chosen` or by default all, in the place of the nodes that call them.

    In place, in bodies too. Raises ModelError, naming the function, where that cannot be: a function that calls
    itself, or one that takes a graph for an attribute.
    """
    for key in model.functions if chosen is None else chosen:
        # The inliner insists on equal versions. ONNX asks of a valid file that the operators in a
        # body mean the same in both; the one known breach, `axes` of reductions, is mended after.
        imports = model.functions[key].opset_imports
        imports.update({domain: model.opset_imports.get(domain, version) for domain, version in imports.items()})
    try:
        InlinePass(criteria=lambda function: chosen is None or function.identifier() in chosen)(model)
    except Exception as error:  # whatever the inliner trips over in a damaged file
        raise ModelError(f"a function of the file cannot be inlined: {error.__cause__ or error}") from error
    for node in model.graph.all_nodes():
        model.opset_imports.setdefault(node.domain, 1)
    _unshadow(model)
    _mend_reductions(model)


def _inline_norm_functions(model: ir.Model) -> None:
    holders = _functions_with_norms(model)
    if holders:
        inline_functions(model, holders)


def _unshadow(model: ir.Model) -> None:
    """The inliner makes new names unique in their graph, not among those of the bodies within it."""
    inner = {
        value.name
        for graph in model.graphs()
        if graph is not model.graph
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs))
    }
    names = Names.of(model)
    for value in (output for node in model.graph for output in node.outputs):
        if value.name in inner and value.name and not value.is_graph_output():
            value.name = names.unique(value.name)


def _name_nodes(model: ir.Model) -> None:
    """Unnamed nodes are called like what they give out; a name given twice gets a number.

    Names of values stay, in bodies too: ONNX Runtime's search operators know their bodies' inputs by name.
    """
    names = Names()
    for node in model.graph.all_nodes():
        node.name = names.unique(node.name or next((str(v.name) for v in node.outputs if v.name), node.op_type))


def _functions_with_norms(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """The functions that hold a norm, themselves or in a function that they call."""
    holders: set[ir.OperatorIdentifier] = set()
    bodies = {key: list(function.all_nodes()) for key, function in model.functions.items()}
    grown = True
    while grown:
        grown = False
        for key, nodes in bodies.items():
            if key not in holders and any(_hides_norm(node, model, holders) for node in nodes):
                holders.add(key)
                grown = True
    return holders


def _hides_norm(node: ir.Node, model: ir.Model, holders: set[ir.OperatorIdentifier]) -> bool:
    if node.op_identifier() in model.functions:
        return node.op_identifier() in holders
    return is_norm_name(node.op_type) or (node.domain == "" and node.op_type in _REDUCTIONS)


def _mend_reductions(model: ir.Model) -> None:
    opset = model.opset_imports[""]
    for node in list(model.graph.all_nodes()):
        since = _AXES_INPUT_SINCE.get(node.op_type) if node.domain == "" else None
        axes = node.attributes.get("axes")
        if since is None or opset < since or axes is None or len(node.inputs) > 1:
            continue
        initializer = add_initializer(model.graph, f"{node.outputs[0].name}.axes", np.asarray(axes.as_ints(), np.int64))
        node.attributes.pop("axes")
        node.resize_inputs(2)
        node.replace_input_with(1, initializer)


def _take_types(model: ir.Model, tell_types: TellTypes) -> bool:
    """Gives types to the values of the main graph that have none; whether any was told."""
    untyped = {str(v.name): v for node in model.graph for v in node.outputs if v.name and v.type is None}
    told = tell_types(model, list(untyped)) if untyped else {}
    for name, known in told.items():
        untyped[name].type = known.type
        if untyped[name].shape is None:
            untyped[name].shape = known.shape
    return bool(told)

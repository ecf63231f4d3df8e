"""The model-local ONNX function of each operator: the same file runs where our library is not.

A body is: (Add skip,) Cast to the computing type, (times the gain of the coupled channels,) the function's core, times
weight, plus bias, Cast back. ONNX Runtime inlines it and resolves the operators at the model's own opset, so a body is
written for that opset.
"""

from __future__ import annotations

import functools

import onnx
from onnx import helper
from onnxscript import values

from dynorm_onnx.functions.base import DOMAIN, Form, Function
from dynorm_onnx.functions.coupling import LARGEST, gain_nodes

CAST_LIKE_OPSET = 15  # before it, a body cannot end in "the type of X" and serves one type only
IR_VERSION = 8  # the first with model-local functions


def onnx_function(
    function: Function, opset: int, element_type: int, form: Form, *, bounded: bool = False
) -> onnx.FunctionProto:
    """The body of one form of `function` in standard operators of `opset`.

    Inputs X (and skip) [..., C] of type T, weight and bias [C] of type T, then the parameters, float32, [1] or [C]; of
    the coupled forms also channels, int64 [k], and coupling, float32 [k].
    Outputs: Y of type T (and residual = X + skip).
    It computes in float32, or in double where `element_type` is double; from opset 15 on one body in double serves
    every T, one in float32 every T but double. `bounded` leaves out what keeps squares finite, for nodes whose |X|,
    with skip, is at most coupling.LARGEST; the body says so.
    """
    compute = _computing_type(element_type)
    core = _core(function, opset, compute, bounded)
    source = "residual" if form.skip else "X"
    nodes = _sum_nodes(opset, element_type, compute) if form.skip else []
    ungained = "ungained" if form.coupled else "core_x"
    arguments = {"x": source} | {name: name for name in function.parameter_names}
    for name in core.input:
        wide = ungained if name == "x" else f"core_{name}"
        nodes.append(helper.make_node("Cast", [arguments[name]], [wide], to=compute))
    if form.coupled:
        nodes += gain_nodes(ungained, "core_x", compute, bounded)
    nodes += _renamed(core)
    nodes += [
        helper.make_node("Cast", ["weight"], ["wide_weight"], to=compute),
        helper.make_node("Cast", ["bias"], ["wide_bias"], to=compute),
        helper.make_node("Mul", ["wide_weight", f"core_{core.output[0]}"], ["scaled"]),
        helper.make_node("Add", ["scaled", "wide_bias"], ["wide_Y"]),
        _cast_back("wide_Y", "Y", opset, element_type),
    ]
    return helper.make_function(
        DOMAIN,
        function.node_type(form),
        inputs=list(function.input_names(form)),
        outputs=["Y", "residual"] if form.skip else ["Y"],
        nodes=nodes,
        opset_imports=[helper.make_opsetid("", opset)],
        doc_string=f"for |X| up to {LARGEST:g}, which no value here exceeds" if bounded else None,
    )


@functools.cache
def _core(function: Function, opset: int, compute: int, bounded: bool) -> onnx.FunctionProto:
    """Not to be changed. onnxscript takes as long to write it as all else that replacing a norm takes."""
    return function.script(values.Opset("", opset), compute, bounded)


def _computing_type(element_type: int) -> int:
    double = onnx.TensorProto.DOUBLE
    return double if element_type == double else onnx.TensorProto.FLOAT


def _sum_nodes(opset: int, element_type: int, compute: int) -> list[onnx.NodeProto]:
    """residual = X + skip, rounded to T; by way of `compute`, since not every T has an Add on the CPU."""
    return [
        helper.make_node("Cast", ["X"], ["wide_X"], to=compute),
        helper.make_node("Cast", ["skip"], ["wide_skip"], to=compute),
        helper.make_node("Add", ["wide_X", "wide_skip"], ["wide_residual"]),
        _cast_back("wide_residual", "residual", opset, element_type),
    ]


def _cast_back(wide: str, name: str, opset: int, element_type: int) -> onnx.NodeProto:
    """To the type of X."""
    if opset >= CAST_LIKE_OPSET:
        return helper.make_node("CastLike", [wide, "X"], [name])
    return helper.make_node("Cast", [wide], [name], to=element_type)


def _renamed(core: onnx.FunctionProto) -> list[onnx.NodeProto]:
    """The core's nodes with every value prefixed, so that none clashes with the body's own."""
    nodes = []
    for node in core.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [f"core_{name}" for name in node.input]
        copy.output[:] = [f"core_{name}" for name in node.output]
        nodes.append(copy)
    return nodes

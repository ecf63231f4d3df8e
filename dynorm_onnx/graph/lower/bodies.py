"""The fused norms as model-local functions, for models whose opset has no such operator.

ONNX Runtime registers SimplifiedLayerNormalization, and LayerNormalization below opset 17, in the
default domain; no such file passes onnx.checker, and a file that passed must still pass. In the domain
com.microsoft, with their body in the file, they are valid everywhere, and ONNX Runtime (1.32, CPU) fuses
the inlined body into its own kernel again. Raising the opset instead would change the meaning of every
other node.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.norm_site import Kind

DOMAIN = "com.microsoft"
IR_VERSION = 8  # the first with model-local functions
CAST_LIKE_OPSET = 15  # below it a body serves one type only
_OP_TYPES: dict[Kind, str] = {"rms": "SimplifiedLayerNormalization", "layer": "LayerNormalization"}


def add_norm_function(model: ir.Model, kind: Kind, dtypes: Iterable[ir.DataType]) -> str:
    """Puts the body into `model` once, for all of `dtypes`; returns its operator type.

    The body computes in float32, or in double if one of the types is. Its inputs are X [..., C], scale
    [C] and for LayerNormalization B [C], all of one of the types; its attribute is epsilon.
    """
    op_type = _OP_TYPES[kind]
    key = (DOMAIN, op_type, "")
    if key not in model.functions:
        model.functions[key] = _function(kind, op_type, model.opset_imports[""], frozenset(dtypes))
        model.opset_imports.setdefault(DOMAIN, 1)
        model.ir_version = max(model.ir_version, IR_VERSION)
    return op_type


def _function(kind: Kind, op_type: str, opset: int, dtypes: frozenset[ir.DataType]) -> ir.Function:
    wide = ir.DataType.DOUBLE if ir.DataType.DOUBLE in dtypes else ir.DataType.FLOAT
    body = _Body(opset, wide)
    inputs = [ir.Value(name=name) for name in ("X", "scale", "B")[: 2 if kind == "rms" else 3]]
    x, *parameters = inputs
    if dtypes != {wide}:
        x, *parameters = (body.op("Cast", [value], to=wide.value) for value in inputs)
    if kind == "layer":
        x = body.op("Sub", [x, body.mean(x)])
    # Pow, Div, Mul in this order: the shape that ONNX Runtime recognises.
    variance = body.mean(body.op("Pow", [x, body.constant(np.asarray(2, wide.numpy()))]))
    deviation = body.op("Sqrt", [body.op("Add", [variance, body.epsilon(variance)])])
    y = body.op("Mul", [body.op("Div", [x, deviation]), parameters[0]])
    if kind == "layer":
        y = body.op("Add", [y, parameters[1]])
    if dtypes != {wide}:
        y = body.narrow(y, inputs[0], dtypes)
    graph = ir.Graph(inputs, [y], nodes=body.nodes, opset_imports={"": opset}, name=op_type)
    epsilon = ir.Attr("epsilon", ir.AttributeType.FLOAT, None)
    return ir.Function(DOMAIN, op_type, graph=graph, attributes=[epsilon])


class _Body:
    """The nodes of a function body, written one by one; opset differences are hidden here."""

    def __init__(self, opset: int, wide: ir.DataType) -> None:
        self.nodes: list[ir.Node] = []
        self._opset = opset
        self._wide = wide

    def op(self, op_type: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        return self._append(op_type, inputs, ir.convenience.convert_attributes(attributes))  # type: ignore[arg-type]

    def constant(self, array: np.ndarray) -> ir.Value:
        return self.op("Constant", [], value=ir.tensor(array))

    def mean(self, x: ir.Value) -> ir.Value:
        if self._opset >= 18:
            return self.op("ReduceMean", [x, self.constant(np.asarray([-1], np.int64))], keepdims=1)
        return self.op("ReduceMean", [x], axes=[-1], keepdims=1)

    def epsilon(self, like: ir.Value) -> ir.Value:
        """The attribute as a tensor: a Constant, which below opset 12 takes whole tensors only."""
        if self._opset >= 12:
            reference = ir.RefAttr("value_float", "epsilon", ir.AttributeType.FLOAT)
            epsilon = self._append("Constant", [], [reference])
        else:  # HardSigmoid is max(0, min(1, alpha x + beta)): the only scalar made of an attribute
            zero = self.constant(np.zeros([], np.float32))
            reference = ir.RefAttr("beta", "epsilon", ir.AttributeType.FLOAT)
            epsilon = self._append("HardSigmoid", [zero], [ir.AttrFloat32("alpha", 0.0), reference])
        return epsilon if self._wide == ir.DataType.FLOAT else self.op("Cast", [epsilon], to=self._wide.value)

    def narrow(self, y: ir.Value, x: ir.Value, dtypes: frozenset[ir.DataType]) -> ir.Value:
        if len(dtypes) == 1:
            return self.op("Cast", [y], to=next(iter(dtypes)).value)
        return self.op("CastLike", [y, x])

    def _append(self, op_type: str, inputs: list[ir.Value], attributes: list[ir.Attr]) -> ir.Value:
        node = ir.Node("", op_type, inputs, attributes, name=f"{op_type}_{len(self.nodes)}")
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

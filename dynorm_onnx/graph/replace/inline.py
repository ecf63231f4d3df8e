"""A model in standard operators, without local functions: what runtimes take that know no functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass

from dynorm_onnx.functions import DOMAIN, OPERATORS, Coupling, Function, NormParameters
from dynorm_onnx.functions.compact import Argument, scaled, shifted
from dynorm_onnx.graph.edit.emit import Emitter, remove_dead, take_over
from dynorm_onnx.graph.edit.unique_names import Names
from dynorm_onnx.graph.files.prepare import clone, inline_functions
from dynorm_onnx.graph.values.fixed import fixed_tensor
from dynorm_onnx.graph.values.magnitude import Magnitudes

STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_CLIP_TAKES_INPUTS = 11  # the opset; before, its limits are attributes
_SUM_TAKES_INPUTS = 13  # the same of ReduceSum's axes
_WEIGHT = ".weight"  # what the name of a node's second input ends with, where rewrite.replace() made it


def inlined(model: ir.Model) -> ir.Model:
    """A copy of a model without local functions, in its bodies too; tensors are shared.

    The functions that replace norms are written in as few operators as their parameters need, every other function by
    its body. Domains that no node is of then are imported no longer. Raises ModelError, naming the function, for one
    that cannot be inlined.
    """
    copy = clone(model)
    magnitude, names = Magnitudes(copy), Names.of(copy)
    ours = [node for node in copy.graph.all_nodes() if node.domain == DOMAIN and node.op_type in OPERATORS]
    planned = [(node, known) for node in ours if (known := _parameters(node)) is not None]
    largest = {node: _largest(node, magnitude) for node, _ in planned}  # before anything is written
    for node, known in planned:
        _write_out(node, known, largest[node], names, copy.opset_imports[""])
    RemoveUnusedFunctionsPass()(copy)
    inline_functions(copy)
    used = {node.domain for node in copy.graph.all_nodes()}
    for domain in set(copy.opset_imports) - used - {""}:
        del copy.opset_imports[domain]
    return copy


def other_operators(model: ir.Model) -> tuple[str, ...]:
    """The operators of other domains than ONNX's own that nodes of the model are of, as DOMAIN.OPERATOR, each once."""
    others = {(node.domain, node.op_type) for node in model.graph.all_nodes() if node.domain not in STANDARD_DOMAINS}
    return tuple(f"{domain}.{op_type}" for domain, op_type in sorted(others))


def _parameters(node: ir.Node) -> NormParameters | None:
    """What the file has for the parameters of a node; None where a run computes one, or may be fed another."""
    function, form = OPERATORS[node.op_type]
    names = function.input_names(form)
    if len(names) != len(node.inputs):
        return None  # ONNX Runtime says what is wrong
    arrays: dict[str, np.ndarray] = {}
    for name, value in zip(names, node.inputs, strict=True):
        if name in ("X", "skip"):
            continue
        tensor = fixed_tensor(value)
        if tensor is None:
            return None
        array = tensor.numpy()
        arrays[name] = array if name == "channels" else array.astype(np.float64)
    coupling = Coupling(arrays["channels"], arrays["coupling"]) if form.coupled else None
    scalars = {name: arrays[name] for name in function.parameter_names}
    return NormParameters(arrays["weight"], arrays["bias"], scalars, coupling)


def _largest(node: ir.Node, magnitude: Magnitudes) -> float:
    """A bound of what the function is of."""
    return sum(magnitude(value) for value in node.inputs[: 1 + OPERATORS[node.op_type][1].skip])


def _write_out(node: ir.Node, known: NormParameters, largest: float, names: Names, opset: int) -> None:
    """Puts standard operators in the place of a node of ours."""
    function, form = OPERATORS[node.op_type]
    x, weight = node.inputs[0], node.inputs[1 + form.skip]
    dtype = x.dtype if x is not None and x.dtype is not None else weight.dtype if weight is not None else None
    assert x is not None and dtype is not None and isinstance(node.graph, ir.Graph)
    emit = Emitter(node.graph, names, node, _stem(node, weight), [node])
    if form.skip:
        x = emit.add(x, node.inputs[1], dtype, output="residual", like=node.outputs[1])
    y = _function(function, known, x, dtype, largest, _Writer(emit, dtype, opset))
    take_over(node.outputs[0], y)
    if form.skip:
        take_over(node.outputs[1], x)
    remove_dead([node])


def _stem(node: ir.Node, weight: ir.Value | None) -> str:
    """What new names begin with: the site and the function, as the parameters are called, or else the node."""
    name = str(weight.name) if weight is not None else ""
    return name.removesuffix(_WEIGHT) if name.endswith(_WEIGHT) else str(node.name)


def _function(
    function: Function, known: NormParameters, x: ir.Value, dtype: ir.DataType, largest: float, out: _Writer
) -> ir.Value:
    """weight core(x; parameters) + bias, of the type `dtype`."""
    wide = out.cast(x, out.dtype, "wide")
    core = function.compact(Argument(out, wide, largest, known.coupling), **known.scalars)
    y: ir.Value = shifted(out, scaled(out, core, known.weight, "weighted"), known.bias, "biased")
    return out.cast(y, dtype, "narrow")


class _Writer:
    """functions.compact.Operators: writes into a graph, in float32, or double where that is the type of the norm."""

    def __init__(self, emit: Emitter, dtype: ir.DataType, opset: int) -> None:
        self.is_double = dtype == ir.DataType.DOUBLE
        self.dtype = ir.DataType.DOUBLE if self.is_double else ir.DataType.FLOAT
        self._emit, self._opset = emit, opset

    def cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        return self._emit.cast(value, dtype, name)

    def op(
        self, op_type: str, inputs: Sequence[ir.Value], name: str, attributes: Mapping[str, int] | None = None
    ) -> ir.Value:
        dtype = ir.DataType.BOOL if op_type == "Greater" else self.dtype
        value = self._emit.op(op_type, inputs, attributes, output=name, dtype=dtype)
        value.shape = _shape(op_type, inputs)
        return value

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        return self._emit.initializer(np.asarray(array, self.dtype.numpy()), name)

    def indices(self, numbers: np.ndarray, name: str) -> ir.Value:
        return self._emit.integers(numbers, name)

    def summed(self, x: ir.Value, name: str) -> ir.Value:
        by_input = self._opset >= _SUM_TAKES_INPUTS
        inputs = [x, self._emit.integers([-1], f"{name}_axes")] if by_input else [x]
        attributes = None if by_input else {"axes": [-1]}
        value = self._emit.op("ReduceSum", inputs, attributes, output=name, dtype=self.dtype)
        value.shape = ir.Shape([*x.shape[:-1], 1]) if x.shape is not None and len(x.shape) else None
        return value

    def clip(self, x: ir.Value, limit: float, name: str) -> ir.Value:
        if self.is_double:  # ONNX Runtime has no Clip in double below opset 12
            above = self.op("Max", [x, self.constant(np.array(-limit), "lowest")], f"{name}_below")
            return self.op("Min", [above, self.constant(np.array(limit), "highest")], name)
        if self._opset < _CLIP_TAKES_INPUTS:
            return self._emit.op("Clip", [x], {"min": -limit, "max": limit}, output=name, like=x)
        limits = [self.constant(np.array(end), end_name) for end, end_name in ((-limit, "lowest"), (limit, "highest"))]
        return self.op("Clip", [x, *limits], name)


def _shape(op_type: str, inputs: Sequence[ir.Value]) -> ir.Shape | None:
    """Of the result; what is here changes the last axis alone, and there a one meets a vector."""
    shape = inputs[0].shape
    if shape is None or not len(shape):
        return None
    last = shape[-1]
    others = [value.shape[-1] for value in inputs[1:] if value.shape is not None and len(value.shape)]
    if others and (op_type == "Gather" or last == 1):
        last = others[0]
    return ir.Shape([*shape[:-1], last])

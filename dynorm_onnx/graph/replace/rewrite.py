"""One `dynorm` node in the place of a canonical norm node, with its body in the file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass

from dynorm_onnx.errors import UsageError
from dynorm_onnx.functions import (
    DOMAIN,
    DOMAIN_VERSION,
    OPERATORS,
    REGISTRY,
    Form,
    Function,
    NormParameters,
    onnx_function,
)
from dynorm_onnx.functions.body import IR_VERSION
from dynorm_onnx.graph.edit.emit import add_initializer, inherit, remove_dead, set_tensor, take_over
from dynorm_onnx.graph.edit.unique_names import Names
from dynorm_onnx.graph.lower import LoweredNorm, sum_operands


def replace(model: ir.Model, norm: LoweredNorm, function_name: str, parameters: NormParameters) -> ir.Node:
    """Puts function `function_name` ("DyISRU", "DyT", "Derf") in the place of `norm`; in place.

    `model` is the lowered model that `norm` is of, in its main graph or in a body, or a clone of it.
    Where x is a sum of two values of one shape, made in the norm's own graph, the Add goes as well and the node is the
    Skip form: its second output is the sum, under the sum's name. One pass over the tokens is saved, also where nothing
    else reads the sum, as behind post-norms. A norm whose `skip` is None always gets the plain form. Returns the new
    node, which has the old one's name. Raises UsageError for an unknown function.
    """
    function = _function(function_name)
    node = node_in(model, norm)
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    names = Names.of(model)
    values = [
        add_initializer(model.graph, names.unique(f"{norm.site_name}.{function.name}.{name}"), array)
        for name, array in _arrays(function, parameters, norm.dtype).items()
    ]
    add, graph = x.producer(), node.graph
    assert isinstance(graph, ir.Graph)
    operands = sum_operands(x) if norm.skip is not None else None
    coupled = parameters.coupling is not None
    if operands is None or add is None or add.graph is not graph:
        form = Form(coupled=coupled)
        new = ir.node(function.node_type(form), [x, *values], domain=DOMAIN, num_outputs=1, name=node.name)
        inherit(new, [node])
        graph.insert_before(node, new)
        take_over(y, new.outputs[0])
        remove_dead([node])
    else:
        form = Form(skip=True, coupled=coupled)
        new = ir.node(function.node_type(form), [*operands, *values], domain=DOMAIN, num_outputs=2, name=node.name)
        inherit(new, [add, node])
        graph.insert_before(add, new)  # the sum may be read before the norm
        take_over(y, new.outputs[0])
        take_over(x, new.outputs[1])
        remove_dead([add, node])
    add_body(model, function, norm.dtype, form)
    return new


def set_parameters(node: ir.Node, parameters: NormParameters) -> None:
    """Overwrites the parameters of a node that `replace` made; their shapes may change.

    Whether channels are coupled must stay as it is: that is the operator's type.
    """
    function, form = OPERATORS[node.op_type]
    values = [value for value in node.inputs[1 + form.skip :] if value is not None]
    dtype = values[0].dtype
    assert dtype is not None
    for value, array in zip(values, _arrays(function, parameters, dtype).values(), strict=True):
        set_tensor(value, ir.tensor(array, name=value.name))
        value.shape = ir.Shape(array.shape)


def set_initializers(model: ir.Model, arrays: Mapping[str, np.ndarray | ir.TensorProtocol]) -> None:
    """Overwrites initializers of the main graph by name; types and shapes stay as they are."""
    for name, array in arrays.items():
        tensor = ir.tensor(array, name=name) if isinstance(array, np.ndarray) else array
        set_tensor(model.graph.initializers[name], tensor)


def count_replacements(model: ir.Model) -> int:
    """How many nodes of `model` are functions that replace a norm: one that was converted, or exported from PyTorch."""
    return sum(node.domain == DOMAIN for node in model.graph.all_nodes())


def drop_unused_functions(model: ir.Model) -> None:
    """Removes local functions that no node calls, such as the bodies of canonical norms that are gone."""
    RemoveUnusedFunctionsPass()(model)


def _function(name: str) -> Function:
    function = REGISTRY.get(name.lower())
    if function is None:
        known = ", ".join(function.op_type for function in REGISTRY.values())
        raise UsageError(f"There is no function {name!r}; there are {known}.")
    return function


def node_in(model: ir.Model, norm: LoweredNorm) -> ir.Node:
    """The norm's node, or the one of that name if `model` is a clone: names are unique."""
    if norm.node.graph is model.graph:
        return norm.node
    return next(node for node in model.graph.all_nodes() if node.name == norm.node.name)


def _arrays(function: Function, parameters: NormParameters, dtype: ir.DataType) -> dict[str, np.ndarray]:
    """weight and bias in the type of X, then the function's own parameters: always float32; then what is coupled."""
    vectors = {"weight": parameters.weight, "bias": parameters.bias}
    arrays = {name: np.asarray(array).astype(dtype.numpy()) for name, array in vectors.items()} | {
        name: np.asarray(parameters.scalars[name], np.float32) for name in function.parameter_names
    }
    if parameters.coupling is not None:
        arrays["channels"] = np.asarray(parameters.coupling.channels, np.int64)
        arrays["coupling"] = np.asarray(parameters.coupling.strengths, np.float32)
    return arrays


def add_body(model: ir.Model, function: Function, dtype: ir.DataType, form: Form) -> None:
    """Gives `model` the body of a function, once; one in double serves every type, so it takes the place of another.

    Also declares the domain. `dtype` is the type of X of the node that needs the body.
    """
    key = (DOMAIN, function.node_type(form), "")
    if key not in model.functions or dtype == ir.DataType.DOUBLE:
        proto = onnx_function(function, model.opset_imports[""], dtype.value, form)
        model.functions[key] = ir.serde.deserialize_function(proto)
    model.opset_imports[DOMAIN] = DOMAIN_VERSION
    model.ir_version = max(model.ir_version, IR_VERSION)

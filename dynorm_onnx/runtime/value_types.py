"""The types of values that a file does not state and onnx cannot infer, asked of ONNX Runtime, which must know them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import onnx_ir as ir

from dynorm_onnx.errors import DynormError
from dynorm_onnx.runtime.session import make_session

log = logging.getLogger(__name__)

_WEIGHTS_ABOVE = 1 << 12
"""Bytes of an initializer whose type is all that is asked of it; smaller ones (shapes, axes) tell other types."""
_FATAL = 4  # a session that fails here is tried in another way, so ONNX Runtime need not tell of it
_WRAPPERS = {"seq": ir.SequenceType, "optional": ir.OptionalType}


def value_types(model: ir.Model, names: Sequence[str]) -> dict[str, ir.TypeAndShape]:
    """Type and shape of values of the main graph, by name; the model is not changed, its weights are hardly read.

    A value whose type ONNX Runtime cannot say either is left out: all of them, where it cannot load the model.
    """
    for stand_in in (_with_weights_as_inputs, _with_weights):  # a few kernels insist on constants
        try:
            session = make_session(stand_in(model, names), optimization="none", threads=1, log_severity=_FATAL)
        except DynormError as error:
            log.info("the types of %d values cannot be asked for: %s", len(names), error)
            continue
        wanted = set(names)
        told = {port.name: _type_and_shape(port.type, port.shape) for port in session.get_outputs()}
        return {name: known for name, known in told.items() if name in wanted and known is not None}
    return {}


def _with_weights(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A clone that gives out these values too."""
    copy = model.clone()
    given = {value.name for value in copy.graph.outputs}
    values = ir.convenience.create_value_mapping(copy.graph, include_subgraphs=False)
    copy.graph.outputs.extend(values[name] for name in names if name not in given)
    return copy


def _with_weights_as_inputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """The same without the data of large weights, so that it costs little whatever the size of the model."""
    copy = _with_weights(model, names)
    for name, value in list(copy.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes <= _WEIGHTS_ABOVE:
            continue
        if value.is_graph_output():  # which nothing can be that is an input
            continue
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        del copy.graph.initializers[name]
        value.const_value = None
        if not value.is_graph_input():
            copy.graph.inputs.append(value)
    return copy


def _type_and_shape(kind: str, sizes: Sequence[int | str | None]) -> ir.TypeAndShape | None:
    """What ONNX Runtime says of an output; None for a map, which has no type here, and for what it does not know."""
    wrapper, _, inner = kind.removesuffix(")").partition("(")
    if wrapper in _WRAPPERS:
        known = _type_and_shape(inner, ())
        return None if known is None or known.type is None else ir.TypeAndShape(_WRAPPERS[wrapper](known.type), None)
    if wrapper != "tensor" or inner.upper() not in ir.DataType.__members__:
        return None
    # A scalar and a tensor of a rank that nobody knows are described alike.
    return ir.TypeAndShape(ir.TensorType(ir.DataType[inner.upper()]), ir.Shape(sizes) if sizes else None)

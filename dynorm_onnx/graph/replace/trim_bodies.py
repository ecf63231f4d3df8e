"""Bodies without what keeps squares finite, where the graph bounds all that they are of.

A body in standard operators serves any input; in a converted transformer every stream is bounded by the functions and
the weights (magnitude.py). Without our library each operator of a body is a pass over the tokens.
"""

from __future__ import annotations

import onnx_ir as ir

from dynorm_onnx.functions import DOMAIN, OPERATORS, onnx_function
from dynorm_onnx.functions.coupling import LARGEST
from dynorm_onnx.graph.files.prepare import clone
from dynorm_onnx.graph.values.magnitude import Magnitudes


def trimmed(model: ir.Model) -> ir.Model:
    """A copy, tensors shared, in which each function that replaces norms has a body for bounded inputs, where those of
    all its nodes are bounded."""
    model = clone(model)
    magnitude = Magnitudes(model)
    for op_type, (function, form) in OPERATORS.items():
        key = (DOMAIN, op_type, "")
        nodes = [node for node in model.graph.all_nodes() if node.op_identifier() == key]
        types = {value.dtype for node in nodes if (value := node.inputs[1 + form.skip]) is not None}  # weights: as X
        if key not in model.functions or len(types) != 1 or (dtype := types.pop()) is None:
            continue
        if all(sum(magnitude(value) for value in node.inputs[: 1 + form.skip]) <= LARGEST for node in nodes):
            proto = onnx_function(function, model.opset_imports[""], dtype.value, form, bounded=True)
            model.functions[key] = ir.serde.deserialize_function(proto)
    return model

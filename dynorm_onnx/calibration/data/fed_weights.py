"""Weights that a file leaves out and every run must feed: inputs of fixed shape that are read as weights alone.

They are no data: whatever their first size is, it counts no samples, and one of them serves all samples.
"""

from __future__ import annotations

import onnx_ir as ir

from dynorm_onnx.graph.values.fixed import constant_values

# operators behind which a weight is still one
_CARRIED = frozenset(
    {"Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "DequantizeLinear"}
)
# operator -> the first of its inputs that are parameters
_PARAMETERS_FROM = {
    "Conv": 1, "ConvTranspose": 1, "BatchNormalization": 1, "InstanceNormalization": 1, "GroupNormalization": 1,
    "LayerNormalization": 1, "RMSNormalization": 1, "SimplifiedLayerNormalization": 1, "PRelu": 1,
    "SkipLayerNormalization": 2, "SkipSimplifiedLayerNormalization": 2, "BiasGelu": 1, "MatMulNBits": 1,
}  # fmt: skip
_ELEMENT_WISE = frozenset({"Add", "Sub", "Mul", "Div"})


def read_as_weights(graph: ir.Graph) -> set[ir.Value]:
    """The inputs of a graph that are weights; none where all of them would be, for then one is the data.

    A matrix counts as a weight where it is the second operand of a MatMul or Gemm, or a table that is gathered from;
    a vector also where it is added to something of more axes, or multiplied by it.
    """
    values = [value for value in graph.inputs if not value.is_initializer() and value.uses()]
    shaped = [value for value in values if _static(value) is not None and not value.is_graph_output()]
    if not shaped:
        return set()
    constant = constant_values(graph)
    found = {value for value in shaped if _is_weight(value, constant)}
    return found if len(found) < len(values) else set()


def _is_weight(value: ir.Value, constant: set[ir.Value]) -> bool:
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        if current.is_graph_output():
            return False
        for node, position in current.uses():
            if node.op_type in _CARRIED and position == 0:
                pending += [output for output in node.outputs if output not in seen]
                seen.update(node.outputs)
            elif not _is_parameter(node, position, value, constant):
                return False
    return True


def _is_parameter(node: ir.Node, position: int, value: ir.Value, constant: set[ir.Value]) -> bool:
    """Whether `node` reads `value` at this position as a parameter of something that the data decides."""
    shape = _static(value) or ()
    if node.op_type in _PARAMETERS_FROM:
        return position >= _PARAMETERS_FROM[node.op_type]
    if node.op_type in ("MatMul", "Gemm") and position == 1:
        return len(shape) == 2 and _is_data(node.inputs[0], constant) and not _is_square(node.inputs[0])
    if node.op_type == "Gemm":
        return position == 2
    if node.op_type == "Gather":
        return position == 0 and len(shape) == 2 and _is_data(node.inputs[1], constant)
    if node.op_type in _ELEMENT_WISE and len(node.inputs) == 2:
        other = node.inputs[1 - position]
        more_axes = other is None or other.shape is None or len(other.shape) > len(shape)
        return len(shape) <= 1 and more_axes and _is_data(other, constant)
    return False


def _is_data(value: ir.Value | None, constant: set[ir.Value]) -> bool:
    return value is not None and value not in constant


def _is_square(value: ir.Value | None) -> bool:
    """Whether it may be the edges of a graph, which the nodes' features stand behind."""
    shape = None if value is None else _static(value)
    return shape is not None and len(shape) == 2 and shape[0] == shape[1]


def _static(value: ir.Value) -> tuple[int, ...] | None:
    sizes = tuple(value.shape) if value.shape is not None else (None,)
    known = tuple(size for size in sizes if isinstance(size, int) and size > 0)
    return known if len(known) == len(sizes) else None

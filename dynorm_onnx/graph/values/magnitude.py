"""How large a value can get, where weights and bounded operators tell: bounds that hold for every input of the model.

A norm's replacement is bounded, and so is what a layer makes of it: in a converted transformer that takes token ids
little else is left. Interval arithmetic of magnitudes, coarse by many orders, and only asked whether a square
stays finite.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from dynorm_onnx.functions import DOMAIN, OPERATORS
from dynorm_onnx.functions.compact import FINITE_FLOAT32
from dynorm_onnx.graph.values.fixed import fixed_tensor
from dynorm_onnx.graph.values.mapped import let_go

Bound = Callable[[ir.Value | None], float]

_SAME = frozenset(
    {"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "GatherND", "GatherElements",
     "Flatten", "Expand", "Tile", "Split", "Abs", "Neg", "Relu", "Gelu", "Swish", "ReduceMax", "ReduceMin",
     "ReduceMean", "MaxPool", "AveragePool", "GlobalAveragePool"}
)  # fmt: skip
"""Operators whose results are no larger than their first input."""
_ONE = frozenset({"Tanh", "Sigmoid", "Softmax", "Erf", "Sin", "Cos", "HardSigmoid", "Sign"})
_LARGEST_OF = frozenset({"Concat", "Max", "Min", "Where"})
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
_MICROSOFT = "com.microsoft"
_SKIP_NORMS = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})
_SHARES = frozenset({"Identity", "Cast"})
"""Operators that leave rows that add up to at most one what they are."""
_LARGEST_FLOAT16 = 65504.0
_BLOCK = 1 << 22  # elements of a weight whose magnitudes are made at a time


class Magnitudes:
    """Bounds of |value| for the values of a model and its bodies; infinity where nothing bounds one.

    Weights are read when the first bound is asked for. The model must not change before that; the bounds are those of
    the model as it was then.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    def __call__(self, value: ir.Value | None) -> float:
        """Of a value of the model; a type with few numbers bounds it too."""
        return _known(self._bounds, value)

    @functools.cached_property
    def _bounds(self) -> dict[ir.Value, float]:
        bounds: dict[ir.Value, float] = {}
        shares: set[ir.Value] = set()  # rows of the last axis are not negative and add up to at most one
        for node in ir.traversal.RecursiveGraphIterator(self._model.graph):
            for value in node.inputs:
                if value is not None and value not in bounds and (tensor := fixed_tensor(value)) is not None:
                    bounds[value] = _largest_element(tensor)
                    let_go(value)
            if _makes_shares(node, shares, bounds):
                shares.update(node.outputs)
            for place, output in enumerate(node.outputs):
                if (constant := fixed_tensor(output)) is not None:  # of a Constant node
                    bounds[output] = _largest_element(constant)
                    continue
                bound = _bound(node, place, functools.partial(_known, bounds), shares)
                bounds[output] = bound if bound <= FINITE_FLOAT32 else math.inf  # what overflows is infinite
        return bounds


def _known(bounds: dict[ir.Value, float], value: ir.Value | None) -> float:
    """The bound; a number in float16 has one by its type, for those that overflow are beyond all repair."""
    if value is None:
        return math.inf
    return min(bounds.get(value, math.inf), _LARGEST_FLOAT16 if value.dtype == ir.DataType.FLOAT16 else math.inf)


def _largest_element(tensor: ir.TensorProtocol) -> float:
    if tensor.dtype == ir.DataType.STRING or tensor.size == 0:
        return 0.0 if tensor.size == 0 else math.inf
    array = tensor.numpy()
    ends = [abs(float(array.min())), abs(float(array.max()))]
    return max(ends) if all(map(math.isfinite, ends)) else math.inf


def _makes_shares(node: ir.Node, shares: set[ir.Value], bounds: dict[ir.Value, float]) -> bool:
    if node.domain:
        return False
    if node.op_type == "Softmax":
        axis, x = node.attributes.get("axis"), node.inputs[0]
        rank = len(x.shape) if x is not None and x.shape is not None else None
        return axis is not None and axis.as_int() in (-1, rank and rank - 1)
    if node.op_type == "Where":  # masked once more: with zeros in place of NaN
        return all(value in shares or (value is not None and bounds.get(value) == 0) for value in node.inputs[1:])
    return node.op_type in _SHARES and node.inputs[0] in shares


def _bound(node: ir.Node, place: int, of: Bound, shares: set[ir.Value]) -> float:
    """Of the output in this place."""
    inputs = node.inputs
    if node.domain == DOMAIN and node.op_type in OPERATORS:
        first = 1 + OPERATORS[node.op_type][1].skip
        return of(inputs[0]) + of(inputs[1]) if place == 1 else of(inputs[first]) + of(inputs[first + 1])
    if place and node.domain == _MICROSOFT and node.op_type in _SKIP_NORMS and place == 3:
        return of(inputs[0]) + of(inputs[1]) + sum(_if_any(value, of) for value in inputs[3:])  # and a bias
    if place and node.op_type != "Split":
        return math.inf  # indices, statistics, caches
    if node.op_type in _NORMS:
        return _of_norm(node, of)
    if node.domain == _MICROSOFT:
        return _fused(node, of)
    if node.domain:
        return math.inf
    if node.op_type in _SAME:
        return of(inputs[0])
    if node.op_type == "Cast":
        return of(inputs[0]) if inputs[0] is not None and inputs[0].dtype != ir.DataType.BOOL else 1.0
    if node.op_type in _ONE:
        return 1.0
    if node.op_type in _LARGEST_OF:
        return max(of(value) for value in inputs[1 if node.op_type == "Where" else 0 :])
    if node.op_type in ("Add", "Sub", "Sum"):
        return sum(of(value) for value in inputs)
    if node.op_type == "Mul":
        return _product(of(inputs[0]), of(inputs[1]))
    if node.op_type == "Div":
        return _quotient(of(inputs[0]), inputs[1])
    if node.op_type == "Sqrt":
        return max(1.0, of(inputs[0]))
    if node.op_type == "Pow":
        return _power(of(inputs[0]), inputs[1])
    if node.op_type == "Clip":
        return _of_clip(node, of)
    if node.op_type == "MatMul":
        return of(inputs[1]) if inputs[0] in shares else _of_product(inputs[0], inputs[1], -2, of)
    if node.op_type in ("Gemm", "Conv"):
        return _of_layer(node, of)
    if node.op_type == "Attention":
        return max(of(inputs[2]), *(_if_any(value, of) for value in inputs[5:6]), 0.0)
    return math.inf


def _fused(node: ir.Node, of: Bound) -> float:
    """Of what ONNX Runtime's fusions make: attention gives averages of values, activations no more than they get."""
    inputs = [*node.inputs, *[None] * 8]
    if node.op_type in _SKIP_NORMS:
        return _of_norm(node, of, weight=2)
    if node.op_type in ("Gelu", "QuickGelu"):
        return of(inputs[0])
    if node.op_type in ("BiasGelu", "FastGelu"):
        return of(inputs[0]) + _if_any(inputs[1], of)
    if node.op_type == "RotaryEmbedding":
        return 2 * of(inputs[0]) * max(1.0, of(inputs[2]), of(inputs[3]))
    if node.op_type == "FusedMatMul":
        turned = node.attributes.get("transB")
        axis = -1 if turned is not None and turned.as_int() else -2
        alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
        return abs(alpha) * _of_product(inputs[0], inputs[1], axis, of)
    if node.op_type == "MultiHeadAttention":  # of queries, keys, values; packed ones have five dimensions, or four
        values = inputs[2] if inputs[2] is not None else inputs[1] if inputs[1] is not None else inputs[0]
        return max(of(values) + _if_any(inputs[3], of), _if_any(inputs[7], of))
    if node.op_type == "GroupQueryAttention":  # packed ones have all in the first
        return max(of(inputs[2] if inputs[2] is not None else inputs[0]), _if_any(inputs[4], of))
    if node.op_type == "Attention":
        return max(_of_product(inputs[0], inputs[1], -2, of) + _if_any(inputs[2], of), _if_any(inputs[4], of))
    return math.inf


def _if_any(value: ir.Value | None, of: Bound) -> float:
    return 0.0 if value is None else of(value)


def _product(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _quotient(a: float, divisor: ir.Value | None) -> float:
    tensor = fixed_tensor(divisor)
    smallest = float(np.min(np.abs(tensor.numpy().astype(np.float64)))) if tensor is not None and tensor.size else 0.0
    return a / smallest if smallest > 0 else math.inf


def _power(base: float, exponent: ir.Value | None) -> float:
    tensor = fixed_tensor(exponent)
    if tensor is None or tensor.size != 1 or base == math.inf:
        return math.inf
    power = float(tensor.numpy().reshape(()))
    return max(1.0, base) ** power if 0 <= power <= 4 else math.inf


def _of_clip(node: ir.Node, of: Bound) -> float:
    ends = [node.attributes[name].as_float() for name in ("min", "max") if name in node.attributes]
    limits = [abs(end) for end in ends] + [of(value) for value in node.inputs[1:3]]
    return min(of(node.inputs[0]), max(limits)) if len(limits) == 2 else of(node.inputs[0])


def _of_norm(node: ir.Node, of: Bound, weight: int = 1) -> float:
    """sqrt(C) w + b: no element of what is normalised is longer than all together. `weight` is the place of w."""
    scale, bias = node.inputs[weight], node.inputs[weight + 1] if len(node.inputs) > weight + 1 else None
    if scale is None or scale.shape is None or not all(isinstance(size, int) for size in scale.shape):
        return math.inf
    size = math.prod(size for size in scale.shape if isinstance(size, int))
    return math.sqrt(size) * of(scale) + _if_any(bias, of)


def _of_product(x: ir.Value | None, weight: ir.Value | None, axis: int, of: Bound) -> float:
    """x times a matrix, summed over an axis of that: by its columns where it is a weight, else by their length."""
    tensor = fixed_tensor(weight)
    if tensor is not None and len(tensor.shape) >= 2:
        largest = _largest_sum(tensor.numpy(), axis)
        let_go(weight)
        return _product(of(x), largest)
    length = weight.shape[axis] if weight is not None and weight.shape is not None and len(weight.shape) > 1 else None
    return _product(_product(of(x), of(weight)), length) if isinstance(length, int) else math.inf


def _largest_sum(weight: np.ndarray, axis: int) -> float:
    """Of the magnitudes along one of the last two axes, which are made of a few rows at a time."""
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1) if weight.size else weight.reshape(0, 0)
    step = max(_BLOCK // max(rows.shape[1], 1), 1)
    sums = np.zeros(rows.shape[1])
    for start in range(0, len(rows), step):
        sums += np.abs(rows[start : start + step].astype(np.float32, copy=False)).sum(0, dtype=np.float64)
    return float(sums.max(initial=0.0))


def _of_layer(node: ir.Node, of: Bound) -> float:
    x, weight = node.inputs[:2]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    added = _if_any(bias, of)
    if node.op_type == "Gemm":
        alpha, beta = (
            node.attributes[name].as_float() if name in node.attributes else 1.0 for name in ("alpha", "beta")
        )
        transposed = "transB" in node.attributes and node.attributes["transB"].as_int() != 0
        return abs(alpha) * _of_product(x, weight, -1 if transposed else -2, of) + _product(abs(beta), added)
    tensor = fixed_tensor(weight)
    if tensor is None or not tensor.size:
        return math.inf
    kernels = np.abs(tensor.numpy().astype(np.float32, copy=False))
    kernels = kernels.reshape(len(kernels), -1)
    return _product(of(x), float(np.max(np.sum(kernels, axis=1, dtype=np.float64)))) + added

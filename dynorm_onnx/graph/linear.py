"""Linear layers with constant weights: y = x W + b, however they are spelled.

MatMul with the constant on either side, Gemm with any flags, FusedMatMul, 1x1 Conv and the packed
projection of com.microsoft::Attention; a bias Add that follows belongs to the layer. Weights behind DequantizeLinear
are layers too, told apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.fixed import constant_values, is_fixed
from dynorm_onnx.graph.layer_label import layer_label
from dynorm_onnx.graph.lower.lowered_norm import sum_operands
from dynorm_onnx.graph.quantised import HELD, Grid, dequantised, made_from
from dynorm_onnx.graph.reads import inputs_of

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclasses.dataclass(frozen=True, eq=False)
class Residual:
    """Where a layer's output is added to the stream: total = output + stream."""

    stream: ir.Value
    total: ir.Value


@dataclasses.dataclass(frozen=True, eq=False)
class LinearLayer:
    """One layer; its weight is an initializer that nothing else reads.

    `feature_axis` is the axis of x that is summed over and of y that is made. The weight's data is
    [in, out], or [out, in] (and more ones behind, for Conv) where `transposed`; y = scale x W + b.
    """

    name: str  # the weight's
    node: ir.Node
    x: ir.Value
    feature_axis: int
    weight: ir.Value
    transposed: bool
    scale: float
    bias: ir.Value | None  # an initializer [out] that nothing else reads
    bias_scale: float
    nodes: tuple[ir.Node, ...]  # the node, and the Add of the bias
    y: ir.Value | None  # behind the bias; None where it stays inside the operator
    residual: Residual | None
    grid: Grid | None = None  # of the weight's data, whole numbers, where it is quantised

    @property
    def label(self) -> str:
        """What people call it; `name` is the key."""
        return layer_label(self.node, self.weight)

    @property
    def inputs(self) -> int:
        """How many features x has."""
        return _sizes(self.weight)[1 if self.transposed else 0]

    @property
    def outputs(self) -> int:
        """How many features y has."""
        return _sizes(self.weight)[0 if self.transposed else 1]

    def matrix(self) -> np.ndarray:
        """The weight as [in, out] float64, scale included."""
        assert self.weight.const_value is not None
        stored = self.weight.const_value.numpy()
        array = stored.astype(np.float64) if self.grid is None else self.grid.values(stored)
        array = array.reshape(array.shape[:2])
        return self.scale * (array.T if self.transposed else array)

    @property
    def matrix_grid(self) -> Grid | None:
        """The values that matrix() may have; None where they may be any."""
        return None if self.grid is None else self.grid.oriented(self.scale, transposed=self.transposed)

    def offset(self) -> np.ndarray:
        """The bias as [out] float64, scale included; zeros where there is none."""
        if self.bias is None:
            return np.zeros(self.outputs)
        assert self.bias.const_value is not None
        return self.bias_scale * self.bias.const_value.numpy().astype(np.float64).reshape(-1)

    def parameters(self) -> np.ndarray:
        """matrix(), and offset() as a last row if the layer has a bias: [in (+ 1), out]."""
        return np.vstack([self.matrix(), self.offset()]) if self.bias is not None else self.matrix()

    def stored_parameters(self, parameters: np.ndarray) -> dict[str, np.ndarray]:
        """What parameters() gave (changed), by initializer, each in its own type and shape."""
        assert self.weight.const_value is not None
        matrix = parameters[: self.inputs] / self.scale
        data = matrix.T if self.transposed else matrix
        if self.grid is not None:
            data = self.grid.whole(data).astype(np.int16)  # 4-bit types are made of whole numbers alone
        arrays = {self.name: _like(self.weight.const_value, data)}
        if self.bias is not None and self.bias.const_value is not None:
            offset = parameters[self.inputs] / self.bias_scale
            arrays[str(self.bias.name)] = _like(self.bias.const_value, offset)
        return arrays


@dataclasses.dataclass(frozen=True)
class LinearLayers:
    """The layers of a graph in its order, those whose weights are on a grid apart, and by name why others with constant
    weights are left alone; `held` are those among them whose weight is read elsewhere too."""

    layers: tuple[LinearLayer, ...]
    left: dict[str, str]
    on_grid: tuple[LinearLayer, ...] = ()
    held: tuple[LinearLayer, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Spelling:
    """Which operand is which: positions among the node's inputs, and how they enter."""

    x: int
    weight: int
    bias: int | None
    feature_axis: int
    transposed: bool
    scale: float = 1.0
    bias_scale: float = 1.0


def find_linear_layers(graph: ir.Graph) -> LinearLayers:
    """All linear layers of the graph itself (not of bodies of If or Loop)."""
    readers = _reader_counts(graph)
    constants = constant_values(graph)
    layers: list[LinearLayer] = []
    on_grid: list[LinearLayer] = []
    held: list[LinearLayer] = []
    left: dict[str, str] = {}
    for node in graph:
        if (turned := _turned_weight(node)) is not None:
            left[str(turned.name)] = _unfit(turned, readers) or "the weight is transposed where the model runs"
            layer = _layer(node, _matmul_of_right(), readers)
            held.append(dataclasses.replace(layer, name=str(turned.name), weight=turned, transposed=True))
            continue
        if node.op_type in HELD:
            left[node.name or str(node.outputs[0].name)] = f"{node.op_type}: its weights are quantised"
            continue
        if (made := _on_grid(node, readers)) is not None:
            on_grid.append(made)
            continue
        spelling = _spelling(node)
        if spelling is None:
            if (why := _computed(node, constants)) is not None:
                left[node.name or str(node.outputs[0].name)] = why
            continue
        weight = node.inputs[spelling.weight]
        assert weight is not None
        reason = _unfit(weight, readers)
        if reason is not None:
            left[str(weight.name)] = reason
            held.append(_layer(node, spelling, readers))
            continue
        layers.append(_layer(node, spelling, readers))
    return LinearLayers(tuple(layers), left, tuple(on_grid), tuple(held))


def _on_grid(node: ir.Node, readers: dict[ir.Value, int]) -> LinearLayer | None:
    """A MatMul or Gemm whose weight is dequantised from whole numbers that nothing else reads."""
    operand = node.inputs[1] if len(node.inputs) > 1 else None
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm") or operand is None:
        return None
    found = dequantised(operand)
    if found is None:
        return None
    spelling = _matmul_of_right() if node.op_type == "MatMul" else _gemm_of(node)
    layer = _layer(node, spelling, readers)
    transposed = spelling.transposed != found.turned
    return dataclasses.replace(
        layer, name=str(found.weight.name), weight=found.weight, transposed=transposed, grid=found.grid
    )


def _computed(node: ir.Node, constants: set[ir.Value]) -> str | None:
    """How the weight of a product is computed from constants, in words; None where it is not."""
    if node.op_type not in ("MatMul", "Gemm", "FusedMatMul", "Conv"):
        return None
    operands = [value for value in node.inputs[:2] if value is not None]
    told = [made_from(value, constants) for value in operands]
    return next((why for why in told if why is not None), None) if None in told else None


def _turned_weight(node: ir.Node) -> ir.Value | None:
    """The initializer behind the Transpose that a MatMul multiplies by, as exporters spell a tied head."""
    transpose = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
    if transpose is None or transpose.op_type != "Transpose" or transpose.domain != "":
        return None
    weight = transpose.inputs[0]
    return weight if _is_weight(weight) else None


def _reader_counts(graph: ir.Graph) -> dict[ir.Value, int]:
    counts: dict[ir.Value, int] = {}
    for node in graph:
        for value in inputs_of(node):
            counts[value] = counts.get(value, 0) + 1
    return counts


def _unfit(weight: ir.Value, readers: dict[ir.Value, int]) -> str | None:
    if weight.is_graph_output():
        return "the weight is an output of the graph"
    if readers[weight] > 1:
        return f"the weight is read in {readers[weight]} places (tied or shared), which one solution cannot suit"
    return None


def _like(tensor: ir.TensorProtocol, array: np.ndarray) -> np.ndarray:
    return array.reshape(tensor.numpy().shape).astype(tensor.dtype.numpy())


def _sizes(weight: ir.Value) -> list[int]:
    """The shape of an initializer, which is always known."""
    assert weight.shape is not None
    return [size for size in weight.shape if isinstance(size, int)]


def _spelling(node: ir.Node) -> _Spelling | None:
    reader = _SPELLINGS.get((node.domain, node.op_type))
    return reader(node) if reader is not None else None


def _matmul(node: ir.Node) -> _Spelling | None:
    left, right = node.inputs[:2]
    if _is_weight(right):
        return _matmul_of_right()
    if _is_weight(left):  # W x: the features of x are its rows
        return _Spelling(1, 0, None, -2, transposed=True)
    return None


def _fused_matmul(node: ir.Node) -> _Spelling | None:
    flags = {name: _integer(node, name) for name in ("transA", "transB", "transBatchA", "transBatchB")}
    if not _is_weight(node.inputs[1]) or flags["transA"] or flags["transBatchA"] or flags["transBatchB"]:
        return None
    return _Spelling(0, 1, None, -1, transposed=bool(flags["transB"]), scale=_number(node, "alpha"))


def _matmul_of_right() -> _Spelling:
    return _Spelling(0, 1, None, -1, transposed=False)


def _gemm(node: ir.Node) -> _Spelling | None:
    return _gemm_of(node) if _is_weight(node.inputs[1]) else None


def _gemm_of(node: ir.Node) -> _Spelling:
    axis = 0 if _integer(node, "transA") else -1
    bias = 2 if len(node.inputs) > 2 and node.inputs[2] is not None else None
    return _Spelling(0, 1, bias, axis, bool(_integer(node, "transB")), _number(node, "alpha"), _number(node, "beta"))


def _conv(node: ir.Node) -> _Spelling | None:
    weight = node.inputs[1]
    if not _is_float_constant(weight) or weight is None or weight.shape is None or len(weight.shape) < 3:
        return None
    plain = all(size == 1 for size in weight.shape[2:]) and _integer(node, "group", 1) == 1
    strides, pads = node.attributes.get("strides"), node.attributes.get("pads")
    plain = plain and (strides is None or set(strides.as_ints()) == {1})
    plain = plain and (pads is None or set(pads.as_ints()) == {0})
    bias = 2 if len(node.inputs) > 2 and node.inputs[2] is not None else None
    return _Spelling(0, 1, bias, 1, transposed=True) if plain else None


def _attention(node: ir.Node) -> _Spelling | None:
    return _Spelling(0, 1, 2, -1, transposed=False) if _is_weight(node.inputs[1]) else None


_SPELLINGS = {
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Conv"): _conv,
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
    ("com.microsoft", "Attention"): _attention,
}


def _layer(node: ir.Node, spelling: _Spelling, readers: dict[ir.Value, int]) -> LinearLayer:
    x, weight = node.inputs[spelling.x], node.inputs[spelling.weight]
    assert x is not None and weight is not None
    nodes: tuple[ir.Node, ...] = (node,)
    y = node.outputs[0]
    bias = node.inputs[spelling.bias] if spelling.bias is not None else None
    if bias is None and spelling.bias is None and (added := _bias_add(y, spelling, readers)) is not None:
        add, bias = added
        nodes, y = (node, add), add.outputs[0]
    if bias is not None and not (_is_float_constant(bias) and readers[bias] == 1):
        bias = None
    inside = node.op_type == "Attention"
    return LinearLayer(
        str(weight.name), node, x, spelling.feature_axis, weight, spelling.transposed, spelling.scale,
        bias, spelling.bias_scale, nodes, None if inside else y, None if inside else _residual(y),
    )  # fmt: skip


def _bias_add(y: ir.Value, spelling: _Spelling, readers: dict[ir.Value, int]) -> tuple[ir.Node, ir.Value] | None:
    """The Add of a constant vector that alone reads y, and that vector."""
    add = _only_reader(y)
    if add is None or add.op_type != "Add" or add.domain != "" or spelling.feature_axis != -1:
        return None
    bias = next((value for value in add.inputs if value is not y), None)
    fits = bias is not None and _is_float_constant(bias) and bias.shape is not None and readers[bias] == 1
    if not fits or bias is None or bias.shape is None or y.shape is None:
        return None
    return (add, bias) if list(bias.shape) == [y.shape[-1]] else None


def _residual(y: ir.Value) -> Residual | None:
    """The sum with a stream of y's shape, if that alone reads y."""
    add = _only_reader(y)
    operands = sum_operands(add.outputs[0]) if add is not None else None
    if add is None or operands is None:
        return None
    stream = operands[1] if operands[0] is y else operands[0]
    return Residual(stream, add.outputs[0]) if stream.const_value is None else None


def _only_reader(value: ir.Value) -> ir.Node | None:
    if value.is_graph_output():
        return None
    readers: Iterator[ir.Node] = iter(value.consumers())
    first = next(readers, None)
    return first if next(readers, None) is None else None


def _is_weight(value: ir.Value | None) -> bool:
    return _is_float_constant(value) and value is not None and value.shape is not None and len(value.shape) == 2


def _is_float_constant(value: ir.Value | None) -> bool:
    return value is not None and is_fixed(value) and value.const_value is not None and value.dtype in FLOATS


def _integer(node: ir.Node, name: str, default: int = 0) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default


def _number(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return attribute.as_float() if attribute is not None else 1.0

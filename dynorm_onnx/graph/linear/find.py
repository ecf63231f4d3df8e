"""Linear layers with constant weights: y = x W + b, however they are spelled.

MatMul with the constant on either side, Gemm with any flags, FusedMatMul, 1x1 Conv and the packed
projection of com.microsoft::Attention; a bias Add that follows belongs to the layer. Layers with quantised weights
(graph/quantised) are layers too, told apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir

from dynorm_onnx.graph.linear.linear_layer import FloatWeight, LinearLayer, Residual
from dynorm_onnx.graph.lower.lowered_norm import sum_operands
from dynorm_onnx.graph.quantised import QuantisedProduct, QuantisedWeight, made_from, quantised_product, weight_behind
from dynorm_onnx.graph.values.fixed import constant_values, is_fixed
from dynorm_onnx.graph.values.reads import inputs_of

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


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
        quantised = _on_grid(node, readers, constants)
        if isinstance(quantised, LinearLayer):
            on_grid.append(quantised)
            continue
        spelling, turned = _spelling(node), _turned_weight(node)
        if spelling is None and turned is not None:
            spelling = dataclasses.replace(_matmul_of_right(), transposed=True)
        if spelling is None:
            if (why := quantised or _computed(node, constants)) is not None:
                left[node.name or str(node.outputs[0].name)] = why
            continue
        x, weight = node.inputs[spelling.x], turned or node.inputs[spelling.weight]
        assert x is not None and weight is not None
        layer = _layer(node, spelling, FloatWeight(weight, spelling.transposed), x, (node,), readers)
        reason = _unfit(weight, readers)
        if reason is not None:
            left[str(weight.name)] = reason
        (layers if reason is None else held).append(layer)
    return LinearLayers(tuple(layers), left, tuple(on_grid), tuple(held))


def _on_grid(node: ir.Node, readers: dict[ir.Value, int], constants: set[ir.Value]) -> LinearLayer | str | None:
    """A layer with a quantised weight, or a sentence that names it and says why that cannot be re-fitted."""
    product = quantised_product(node)
    if isinstance(product, QuantisedProduct):
        return _layer(node, _matmul_of_right(product.bias), product.weight, product.x, product.nodes, readers)
    if isinstance(product, str):
        return f"{node.op_type}: its weights are quantised, and {product}"
    operand = node.inputs[1] if len(node.inputs) > 1 else None
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm") or operand is None:
        return None
    spelling, x = _matmul_of_right() if node.op_type == "MatMul" else _gemm_of(node), node.inputs[0]
    weight = weight_behind(operand, turned=spelling.transposed)
    if not isinstance(weight, QuantisedWeight):
        made = made_from(operand, constants)
        return None if weight is None or made is None else f"{made}, and {weight}"
    if _adds_whole_numbers(node):
        weight = dataclasses.replace(weight, scales=None)
    assert x is not None
    return _layer(node, spelling, weight, x, (node,), readers)


def _adds_whole_numbers(node: ir.Node) -> bool:
    """Whether a bias of 32 bits is added: its scale is the product of those of x and of the weight, and kernels for
    whole numbers take that for granted."""
    add = _only_reader(node.outputs[0])
    operands = [*node.inputs[2:], *(add.inputs if add is not None and add.op_type == "Add" else ())]
    makers = [value.producer() for value in operands if value is not None]
    return any(
        maker is not None and maker.op_type == "DequantizeLinear" and maker.inputs[0] is not None
        and maker.inputs[0].dtype == ir.DataType.INT32
        for maker in makers
    )  # fmt: skip


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
    weight, perm = transpose.inputs[0], transpose.attributes.get("perm")
    turns = perm is None or list(perm.as_ints()) == [1, 0]
    return weight if turns and _is_weight(weight) else None


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


def _matmul_of_right(bias: int | None = None) -> _Spelling:
    return _Spelling(0, 1, bias, -1, transposed=False)


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
    bias = 2 if len(node.inputs) > 2 and node.inputs[2] is not None else None
    return _Spelling(0, 1, bias, -1, transposed=False) if _is_weight(node.inputs[1]) else None


_SPELLINGS = {
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Conv"): _conv,
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
    ("com.microsoft", "Attention"): _attention,
}


_ADDING_BIAS = ("BiasGelu", "FastGelu")
"""Activations of com.microsoft that add a bias first."""


def _layer(
    node: ir.Node,
    spelling: _Spelling,
    stored: FloatWeight | QuantisedWeight,
    x: ir.Value,
    nodes: tuple[ir.Node, ...],
    readers: dict[ir.Value, int],
) -> LinearLayer:
    """The layer of `nodes`, the last of which puts out y, and of the Add of a bias behind them."""
    y = nodes[-1].outputs[0]
    bias = node.inputs[spelling.bias] if spelling.bias is not None else None
    if spelling.bias is None and node.op_type != "Attention" and (added := _bias_add(y, spelling, readers)) is not None:
        add, bias = added
        nodes, y = (*nodes, add), add.outputs[0]
    if bias is not None and not (_is_float_constant(bias) and readers[bias] == 1):
        bias = None
    inside = node.op_type == "Attention" or nodes[-1].op_type in _ADDING_BIAS
    return LinearLayer(
        node, x, spelling.feature_axis, stored, spelling.scale, bias, spelling.bias_scale, nodes,
        None if inside else y, None if inside else _residual(y),
    )  # fmt: skip


def _bias_add(y: ir.Value, spelling: _Spelling, readers: dict[ir.Value, int]) -> tuple[ir.Node, ir.Value] | None:
    """The Add of a constant vector that alone reads y, or the activation that begins with it, and that vector."""
    add = _only_reader(y)
    if add is None or spelling.feature_axis != -1:
        return None
    fused = add.domain == "com.microsoft" and add.op_type in _ADDING_BIAS and len(add.inputs) == 2
    if not fused and (add.op_type != "Add" or add.domain != ""):
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

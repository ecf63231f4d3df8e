"""Attention with queries, keys and values of their own, where ONNX Runtime's operator multiplies them in one.

`Attention` multiplies sentence by sentence, `MatMul` all tokens at once. With eight sentences of one or two tokens the
former took a fifth more time on the CPU than what it was fused from, and a twentieth less at 1x128 (docs/kernels.md).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.edit.emit import add_tensor, inherit, remove_dead, take_over
from dynorm_onnx.graph.edit.unique_names import Names
from dynorm_onnx.graph.values.fixed import fixed_tensor
from dynorm_onnx.graph.values.mapped import computed

_DOMAIN = "com.microsoft"
_KEPT = ("num_heads", "scale", "mask_filter_value", "unidirectional")
"""Attributes that mean the same to MultiHeadAttention."""
_PARTS = ("query", "key", "value")
_WEIGHT, _BIAS, _ATTENTION_BIAS = 1, 2, 5  # places of Attention's inputs


def separate_attention(model: ir.Model) -> None:
    """Writes each Attention without mask and cache as three MatMuls and a MultiHeadAttention. In place."""
    names = Names.of(model)
    for graph in model.graphs():
        for node in graph:
            if (node.domain, node.op_type) == (_DOMAIN, "Attention") and (sizes := _sizes(node)) is not None:
                _separate(graph, node, sizes, names)


def _sizes(node: ir.Node) -> Sequence[int] | None:
    """Channels of queries, keys and values; None where the node cannot be written otherwise."""
    others = [value for place, value in enumerate(node.inputs) if place not in (0, _WEIGHT, _BIAS, _ATTENTION_BIAS)]
    known = {*_KEPT, "qkv_hidden_sizes"}
    weight = node.inputs[_WEIGHT]
    if any(value is not None for value in others) or len(node.outputs) > 1 or not node.attributes.keys() <= known:
        return None
    if weight is None or fixed_tensor(weight) is None or len(weight.uses()) > 1 or weight.is_graph_output():
        return None
    if "qkv_hidden_sizes" in node.attributes:
        return node.attributes["qkv_hidden_sizes"].as_ints()
    tensor = fixed_tensor(weight)
    assert tensor is not None
    return [int(tensor.shape.numpy()[1]) // 3] * 3


def _separate(graph: ir.Graph, node: ir.Node, sizes: Sequence[int], names: Names) -> None:
    weight, tensor = node.inputs[_WEIGHT], fixed_tensor(node.inputs[_WEIGHT])
    assert weight is not None and tensor is not None
    made: list[ir.Node] = []
    ends = np.cumsum(sizes).tolist()
    for part, size, end in zip(_PARTS, sizes, ends, strict=True):
        name, shape = names.unique(f"{weight.name}.{part}"), (int(tensor.shape.numpy()[0]), size)
        columns = functools.partial(_columns, start=end - size, end=end)
        own = add_tensor(graph, name, computed(name, shape, [tensor], columns))
        product = ir.Node("", "MatMul", [node.inputs[0], own], name=names.unique(f"{node.name}.{part}"))
        product.outputs[0].name, product.outputs[0].dtype = names.unique(f"{node.outputs[0].name}.{part}"), tensor.dtype
        made.append(product)
    inputs = [*node.inputs, *[None] * (_ATTENTION_BIAS + 1 - len(node.inputs))]
    attention = ir.Node(
        _DOMAIN, "MultiHeadAttention",
        [*(product.outputs[0] for product in made), inputs[_BIAS], None, inputs[_ATTENTION_BIAS]],
        [node.attributes[name] for name in _KEPT if name in node.attributes], name=names.unique(f"{node.name}.heads"),
    )  # fmt: skip
    graph.insert_before(node, [*made, attention])
    inherit(attention, [node])
    take_over(node.outputs[0], attention.outputs[0])
    remove_dead([node])


def _columns(array: np.ndarray, start: int, end: int) -> np.ndarray:
    return array[:, start:end].copy()

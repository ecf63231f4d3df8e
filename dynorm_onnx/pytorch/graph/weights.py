"""Which initializers of a graph are weights that training may change, and which are constants of the architecture.

Told by what reads them: the matrix of a product, the bias added behind one, the parameters of a norm, the
table that token ids index. An epsilon, the frequencies of a rotary embedding, a mask or a quantised weight's
scale are none of these and stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir

from dynorm_onnx.graph.values.reads import inputs_of
from dynorm_onnx.pytorch.graph.functions import function_inputs

_MS = "com.microsoft"
# Inputs by position; in MatMul and its like either operand may be the constant.
_WEIGHT_INPUTS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "MatMul"): (0, 1), ("", "Gemm"): (0, 1, 2), ("", "Conv"): (1, 2), ("", "Einsum"): (0, 1, 2),
    (_MS, "FusedMatMul"): (0, 1), (_MS, "Attention"): (1, 2), (_MS, "MultiHeadAttention"): (3,),
    (_MS, "MatMulNBits"): (5,), (_MS, "BiasGelu"): (1,), (_MS, "FastGelu"): (1,), (_MS, "BiasSplitGelu"): (1,),
    ("", "LayerNormalization"): (1, 2), (_MS, "LayerNormalization"): (1, 2), ("", "RMSNormalization"): (1,),
    ("", "SimplifiedLayerNormalization"): (1,), (_MS, "SimplifiedLayerNormalization"): (1,),
    (_MS, "SkipLayerNormalization"): (2, 3, 4), (_MS, "SkipSimplifiedLayerNormalization"): (2, 3),
    (_MS, "EmbedLayerNormalization"): (2, 5, 6), (_MS, "GatedRMSNorm"): (1,), ("", "GroupNormalization"): (1, 2),
    (_MS, "GroupQueryAttention"): (11, 14, 15), ("", "InstanceNormalization"): (1, 2),
}  # fmt: skip
_POSITIVE = ("alpha", "beta", "coupling")  # of our functions; trained by their logarithm
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")  # their scales are no weights
# What tells about shapes and conditions only: behind it no activation goes on.
_NO_ACTIVATION = frozenset({"Shape", "Size", "Equal", "Greater", "Less", "IsNaN", "NonZero", "ArgMax", "ArgMin"})


@dataclasses.dataclass(frozen=True)
class Weights:
    """Names of float initializers. `norms` are the parameters of our functions.

    `positive` are those of them that stay above zero: alpha, beta and the strengths of coupled channels. Some of the
    last, `couplings`, may be zero. `tables` are weights that token ids index, such as embeddings.
    """

    learned: frozenset[str]
    norms: frozenset[str]
    positive: frozenset[str]
    couplings: frozenset[str]
    tables: frozenset[str]
    activations: frozenset[str]  # values that depend on a learned weight


def find_weights(graph: ir.Graph) -> Weights:
    """The weights of the main graph; those in bodies of If, Loop and Scan are constants here."""
    functions = _function_parameters(graph)
    norms = set(functions)
    roots: dict[str, frozenset[str]] = {}  # by constant value: the float initializers it is made of
    for name, value in graph.initializers.items():
        is_float = value.dtype is not None and value.dtype.is_floating_point()
        roots[str(name)] = frozenset({str(name)}) if is_float and _size(value) > 1 else frozenset()
    learned: set[str] = set(norms)
    tables: set[str] = set()
    behind: set[str] = set(norms)
    for node in graph:
        names = [str(value.name) for value in inputs_of(node)]
        outputs = [str(value.name) for value in node.outputs if value.name]
        if names and all(name in roots for name in names):
            sources = names[:1] if node.op_type in _ROUNDING else names
            together = frozenset().union(*(roots[name] for name in sources))
            roots.update(dict.fromkeys(outputs, together))
            continue
        if not names:
            roots.update(dict.fromkeys(outputs, frozenset()))
            continue
        found = {root for value in _weights_read(node, roots, behind) for root in roots[str(value.name)]}
        learned |= found
        if node.op_type == "Gather":
            tables |= found
        if node.op_type not in _NO_ACTIVATION and (found or behind.intersection(names)):
            behind.update(outputs)
    return Weights(
        learned=frozenset(learned),
        norms=frozenset(norms),
        positive=frozenset(name for name, role in functions.items() if role in _POSITIVE),
        couplings=frozenset(name for name, role in functions.items() if role == "coupling"),
        tables=frozenset(tables),
        activations=frozenset(behind - norms),
    )


def _function_parameters(graph: ir.Graph) -> dict[str, str]:
    """The float initializers of our functions, by name, with what they are to them."""
    return {
        value.name: role
        for node in graph
        for role, value in function_inputs(node).items()
        if value.name and value.is_initializer() and role != "channels"
    }


def _weights_read(node: ir.Node, roots: dict[str, frozenset[str]], behind: set[str]) -> Iterator[ir.Value]:
    """The constant values that the node reads in the place of a weight."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    for place in _WEIGHT_INPUTS.get((domain, node.op_type), ()):
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is not None and str(value.name) in roots:
            yield value
    if domain == "" and node.op_type == "Gather" and _is_token_table(node):
        yield from (value for value in node.inputs[:1] if value is not None and str(value.name) in roots)
    if domain == "" and node.op_type in ("Add", "Sub", "Mul") and len(node.inputs) == 2:
        for value, other in (node.inputs, reversed(node.inputs)):
            if value is not None and other is not None and str(other.name) in behind and _is_vector(value, roots):
                yield value


def _is_token_table(gather: ir.Node) -> bool:
    """Rows of a matrix, by a graph input of integers that are no positions."""
    table, ids = gather.inputs[:2]
    if table is None or ids is None or table.shape is None or len(table.shape) != 2:
        return False
    while (producer := ids.producer()) is not None and producer.op_type in ("Cast", "Reshape", "Identity"):
        source = producer.inputs[0]
        if source is None:
            return False
        ids = source
    return ids.is_graph_input() and "position" not in (ids.name or "")


def _is_vector(value: ir.Value, roots: dict[str, frozenset[str]]) -> bool:
    """Whether it is constant and has one element for each channel, as a bias or a layer's scale."""
    sizes = [size for size in value.shape or () if size != 1]
    return str(value.name) in roots and len(sizes) == 1 and isinstance(sizes[0], int)


def _size(value: ir.Value) -> int:
    return value.const_value.size if value.const_value is not None else 0

"""Forms A1 to A9: norms that are one node. Inputs, outputs and defaults as onnx and ONNX Runtime define them.

A node that calls a local function (form A10) is none of these, whatever its name; functions with norms
in them are inlined before anything is searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import onnx_ir as ir

from dynorm_onnx.graph.forms.affine import enlarges, misfits, spelled
from dynorm_onnx.graph.norm_site import Kind, NearMiss, NormSite, Refusal
from dynorm_onnx.graph.values import small_constants as constants
from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import FLOATS, LARGEST_RANK

Found = NormSite | Refusal | NearMiss

NORM_WEIGHTS = {"q": 14, "k": 15}  # inputs of GroupQueryAttention
NORM_EPSILONS = {"q": "q_norm_epsilon", "k": "k_norm_epsilon"}  # each overrides SHARED_EPSILON
SHARED_EPSILON = "qk_norm_epsilon"
SUM_BIAS = {"SkipLayerNormalization": 4, "SkipSimplifiedLayerNormalization": 3}  # input; added to the sum
SUM_OUTPUT = 3
EMBEDDING_SUM_OUTPUT = 2

_WITH_AXIS = {"RMSNormalization", "SimplifiedLayerNormalization", "LayerNormalization"}
_EPSILON, _SKIP_EPSILON, _QK_EPSILON = 1e-5, 1e-12, 1e-6  # defaults where the attribute is omitted

# Form A9: the norm cannot be taken out of these. Operator -> kind and the input that asks for the norm.
_INSEPARABLE: dict[str, tuple[Kind, int]] = {
    "MatMulNBitsMlp": ("rms", 2),
    "MatMulNBitsQkv": ("rms", 2),
    "QOrderedLayerNormalization": ("layer", 0),
    "QEmbedLayerNormalization": ("layer", 0),
    "RMSNormRotary": ("rms", 0),
    "BranchwiseRMSNorm": ("rms", 0),
}


def find(model: ir.Model, index: GraphIndex) -> list[Found]:
    """The norms among the nodes of the index's graph, in its order."""
    found: list[Found] = []
    for node in index.nodes:
        if node.op_identifier() in model.functions:
            continue
        if node.domain == "com.microsoft" and node.op_type in _INSEPARABLE:
            found += _inseparable(index, node)
        elif (finder := _FINDERS.get((node.domain, node.op_type))) is not None:
            invalid = _why_invalid(index, node)
            found += finder(index, node) if invalid is None else [NearMiss(_name(node), invalid)]
    return found


def _why_invalid(index: GraphIndex, node: ir.Node) -> str | None:
    """Why no runtime takes a node of a fused norm: a type or an axis that the operator does not have."""
    tensors = node.inputs[2:6] if node.op_type == "EmbedLayerNormalization" else node.inputs[:3]
    for value in tensors:
        dtype = index.dtype(value)
        if value is not None and dtype is not None and dtype not in FLOATS:
            return f"its input {value.name} is {dtype.name.lower()}, which {node.op_type} does not take"
    rank = index.rank(_input(node, 0))
    axis = constants.integer(node, "axis", -1) if node.op_type in _WITH_AXIS else -1
    if not (-(rank or LARGEST_RANK) <= axis < (rank or LARGEST_RANK)):
        return f"its axis {axis} is none of an input of {rank or 'unknown'} axes"
    return None


def _single(form: str, kind: Kind) -> Callable[[GraphIndex, ir.Node], Iterator[Found]]:
    """Finder of A1, A2, A3: X, scale(, B) -> Y(, Mean, InvStdDev), over axes axis..rank-1."""

    def finder(index: GraphIndex, node: ir.Node) -> Iterator[Found]:
        x, scale, bias = (_input(node, position) for position in range(3))
        axes = _tail_axes(index, node, x, scale)
        channels = _channels(index, x, scale, axes) if axes else None
        if (reason := _auxiliary(index, node, range(1, len(node.outputs)))) is not None:
            yield _refusal(index, node, form, kind, channels, reason)
        elif x is None or axes is None:
            yield _refusal(index, node, form, kind, None, "the rank of its input is not known")
        elif (reason := _why_not(index, x, scale) or _why_not(index, x, bias)) is not None:
            yield _refusal(index, node, form, kind, channels, reason)
        else:
            yield NormSite(
                _name(node), kind, form, (node,), x, node.outputs[0], scale, bias,
                constants.real(node, "epsilon", _EPSILON), axes, channels, _dtype(index, node, scale, x),
            )  # fmt: skip

    return finder


def _skip(form: str, kind: Kind) -> Callable[[GraphIndex, ir.Node], Iterator[Found]]:
    """Finder of A4 (beta at 3, bias of the sum at 4) and A5 (no beta, bias of the sum at 3)."""

    def finder(index: GraphIndex, node: ir.Node) -> Iterator[Found]:
        x, scale = node.inputs[0], node.inputs[2]
        channels = _channels(index, x, scale, (-1,))
        beta = _input(node, 3) if kind == "layer" else None
        reason = _auxiliary(index, node, (1, 2)) or _why_not(index, x, scale) or _why_not(index, x, beta)
        if reason is not None:
            yield _refusal(index, node, form, kind, channels, reason)
            return
        yield NormSite(
            _name(node), kind, form, (node,), None, node.outputs[0], scale,
            beta, constants.real(node, "epsilon", _SKIP_EPSILON), (-1,), channels, _dtype(index, node, scale, x),
            residual=_used_output(index, node, SUM_OUTPUT),
        )  # fmt: skip

    return finder


def _embedding(index: GraphIndex, node: ir.Node) -> Iterator[Found]:
    words, gamma, beta = node.inputs[2], node.inputs[5], node.inputs[6]
    if (reason := _why_not(index, words, gamma) or _why_not(index, words, beta)) is not None:
        yield _refusal(index, node, "A6", "layer", None, reason)
        return
    yield NormSite(
        _name(node), "layer", "A6", (node,), None, node.outputs[0], gamma, beta,
        constants.real(node, "epsilon", _SKIP_EPSILON), (-1,), _channels(index, words, gamma, (-1,)),
        _dtype(index, node, gamma, words), residual=_used_output(index, node, EMBEDDING_SUM_OUTPUT),
    )  # fmt: skip


def _attention(index: GraphIndex, node: ir.Node) -> Iterator[Found]:
    """A7: only where the norm weights are there; a refusal where the head size is not known."""
    if any(_input(node, position) is None for position in NORM_WEIGHTS.values()):
        return
    shared = constants.real(node, SHARED_EPSILON, _QK_EPSILON)
    for part, position in NORM_WEIGHTS.items():
        weight = node.inputs[position]
        channels = _channels(index, None, weight, (-1,))
        name = f"{_name(node)}.{part}_norm"
        if channels is None:
            yield _refusal(index, node, "A7", "rms", None, "its head size is not known", name)
            continue
        yield NormSite(
            name, "rms", "A7", (node,), None, None, weight, None,
            constants.real(node, NORM_EPSILONS[part], shared), (-1,), channels,
            _dtype(index, node, weight, node.inputs[0]), part="q" if part == "q" else "k",
        )  # fmt: skip


def _gated(index: GraphIndex, node: ir.Node) -> Iterator[Found]:
    x, scale = node.inputs[0], node.inputs[1]
    channels = _channels(index, None, scale, (-1,))
    if channels is None:
        yield _refusal(index, node, "A8", "rms", None, "the size of its groups is not known")
        return
    onto = index.shape(x)
    if onto and onto[-1] is not None and onto[-1] % channels:
        reason = f"its weight of shape [{channels}] does not fit its input of shape {spelled(onto)}"
        yield _refusal(index, node, "A8", "rms", channels, reason)
        return
    yield NormSite(
        _name(node), "rms", "A8", (node,), None, node.outputs[0], scale, None,
        constants.real(node, "epsilon", _EPSILON), (-1,), channels, _dtype(index, node, scale, x),
    )  # fmt: skip


def _inseparable(index: GraphIndex, node: ir.Node) -> Iterator[Refusal]:
    kind, asking = _INSEPARABLE[node.op_type]
    if _input(node, asking) is not None:
        reason = f"it is part of the fused operator {node.op_type}, which does not work without it"
        yield _refusal(index, node, "A9", kind, None, reason)


_FINDERS: dict[tuple[str, str], Callable[[GraphIndex, ir.Node], Iterator[Found]]] = {
    ("", "RMSNormalization"): _single("A1", "rms"),
    ("", "SimplifiedLayerNormalization"): _single("A2", "rms"),
    ("com.microsoft", "SimplifiedLayerNormalization"): _single("A2", "rms"),
    ("", "LayerNormalization"): _single("A3", "layer"),
    ("com.microsoft", "SkipLayerNormalization"): _skip("A4", "layer"),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip("A5", "rms"),
    ("com.microsoft", "EmbedLayerNormalization"): _embedding,
    ("com.microsoft", "GroupQueryAttention"): _attention,
    ("com.microsoft", "GatedRMSNorm"): _gated,
}


def _name(node: ir.Node) -> str:
    return str(node.name or node.outputs[0].name)


def _refusal(
    index: GraphIndex, node: ir.Node, form: str, kind: Kind, channels: int | None, reason: str, name: str = ""
) -> Refusal:
    return Refusal(name or _name(node), kind, form, channels, index.dtype(node.outputs[0]), reason)


def _input(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if len(node.inputs) > position else None


def _used_output(index: GraphIndex, node: ir.Node, position: int) -> ir.Value | None:
    if len(node.outputs) <= position:
        return None
    value = node.outputs[position]
    return value if index.used_outside(value, set()) else None


def _auxiliary(index: GraphIndex, node: ir.Node, positions: range | tuple[int, ...]) -> str | None:
    """Why a norm whose statistics are read elsewhere cannot go."""
    for position in positions:
        value = _used_output(index, node, position)
        if value is not None:
            return f"its mean or inverse deviation ({value.name}) is used elsewhere"
    return None


def _tail_axes(index: GraphIndex, node: ir.Node, x: ir.Value | None, scale: ir.Value | None) -> tuple[int, ...] | None:
    """axis..rank-1 as negative axes; without a known rank LayerNormalization's scale has that of the tail."""
    axis, rank = constants.integer(node, "axis", -1), index.rank(x)
    if axis >= 0 and rank is not None:
        axis -= rank
    elif axis >= 0:
        tail = index.rank(scale) if node.op_type == "LayerNormalization" else None
        axis = -tail if tail else 0
    return tuple(range(axis, 0)) or None


def _channels(index: GraphIndex, x: ir.Value | None, scale: ir.Value | None, axes: tuple[int, ...]) -> int | None:
    shape = index.shape(x)
    if shape is not None and len(shape) >= len(axes):
        sizes = [shape[axis] for axis in axes]
        if all(size is not None for size in sizes):
            return math.prod(size for size in sizes if size is not None)
    weights = index.shape(scale)
    if len(axes) == 1 and weights and weights[-1] is not None and weights[-1] > 1:
        return weights[-1]
    return None


def _why_not(index: GraphIndex, x: ir.Value | None, weight: ir.Value | None) -> str | None:
    """Why a weight or bias cannot be that of x: broadcast against x it gives a larger shape, or none."""
    onto, shape = index.shape(x), index.shape(weight)
    if onto is None or shape is None:
        return None
    if enlarges(shape, onto):
        return "its weight enlarges the shape"
    if misfits(shape, onto):
        return f"its weight of shape {spelled(shape)} does not fit its input of shape {spelled(onto)}"
    return None


def _dtype(index: GraphIndex, node: ir.Node, *operands: ir.Value | None) -> ir.DataType:
    """The type of the result: of RMSNormalization and SimplifiedLayerNormalization that of the scale."""
    types = [node.outputs[0].dtype, *(index.dtype(value) for value in operands)]
    return next((dtype for dtype in types if dtype in FLOATS and dtype is not None), ir.DataType.FLOAT)

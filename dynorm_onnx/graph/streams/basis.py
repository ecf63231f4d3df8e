"""The basis of a stream: which weights would have to change if its channels were mixed by a matrix.

A norm divides all channels of a token by one number, so that a model with norms does not care much in which basis its
stream is written (to RMSNorm any rotation is the same: SliceGPT, arXiv 2401.15024). An element-wise function does:
what it can stand in for depends on how the stream lies to its axes. Where every weight that writes into a stream and
every weight that reads its norms is known, the stream x can become x M for any invertible M: W M where it is
written, M^-1 W where it is read.

A head that shares the embedding's weight writes and reads by one matrix. It can stay shared: what a norm puts out goes
into the stream's own basis before the head reads it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from dynorm_onnx.graph.fold.readers import layers_reading
from dynorm_onnx.graph.fold.stream import Reading, Stream, find_streams, is_own
from dynorm_onnx.graph.linear.find import LinearLayers, find_linear_layers
from dynorm_onnx.graph.linear.linear_layer import LinearLayer
from dynorm_onnx.graph.lower import LoweredNorm

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class TiedHead:
    """A layer [C, ...] behind a norm that multiplies by a weight which writes the stream too.

    `node` [name] is the product, whose input at `position` is the norm's output, or rows of it.
    """

    norm: LoweredNorm
    weight: str
    node: str
    position: int


@dataclasses.dataclass(frozen=True, eq=False)
class StreamBasis:
    """A stream whose basis can be chosen.

    `writers` and `readers` are initializers, each with its axis over the stream's channels, counted from the front; no
    name is in both. `read` says which of the readers lie behind which norm; `heads` are layers whose weights are
    writers, and none of the readers.
    """

    channels: int
    writers: Mapping[str, int]
    readers: Mapping[str, int]
    read: Mapping[LoweredNorm, tuple[str, ...]]
    heads: tuple[TiedHead, ...] = ()


def find_bases(graph: ir.Graph, norms: Sequence[LoweredNorm]) -> tuple[StreamBasis, ...]:
    """The streams of a lowered graph that `norms`, and nothing else, read. Why another is none is logged."""
    return tuple(basis for _, basis in bases_or_reasons(graph, norms) if not isinstance(basis, str))


def bases_or_reasons(
    graph: ir.Graph, norms: Sequence[LoweredNorm]
) -> list[tuple[tuple[LoweredNorm, ...], StreamBasis | str]]:
    """Every stream of `norms`, by the norms that read it, with its basis, or with a sentence that says why it has none;
    that is logged too."""
    layers = find_linear_layers(graph)
    found: list[tuple[tuple[LoweredNorm, ...], StreamBasis | str]] = []
    for stream in find_streams(graph, norms, ()):
        basis = _basis(stream, layers)
        if isinstance(basis, str):
            logger.info("the basis of the stream that %s reads stays: %s", stream.norms[0].site_name, basis)
        found.append((tuple(stream.norms), basis))
    return found


def _basis(stream: Stream, layers: LinearLayers) -> StreamBasis | str:
    """The basis of a stream, or why it has none."""
    if stream.obstacle is not None:
        return stream.obstacle
    if stream.cuts:
        return f"no weights give out a part of it ('{next(iter(stream.cuts)).name}')"
    own, read = set(layers.layers), dict[LoweredNorm, tuple[LinearLayer, ...]]()
    heads: list[tuple[LoweredNorm, LinearLayer]] = []
    for norm in stream.norms:
        found = layers_reading(norm.y, (*layers.layers, *layers.held))
        if isinstance(found, str):
            return f"behind {norm.site_name}: {found}"
        read[norm] = tuple(layer for layer in found if layer in own)
        heads += [(norm, layer) for layer in found if layer not in own]
    for value, readings in stream.tensors.items():
        tied = [layer for _, layer in heads if layer.weight is value]
        if not is_own(value, [*readings, *_reading(tied)]) or any(layer.feature_axis != -1 for layer in tied):
            return f"the weight '{value.name}' is read elsewhere too"
    for norm, layer in heads:
        if layer.weight not in stream.tensors:
            return f"behind {norm.site_name}: {layers.left[layer.name]}: '{layer.name}'"
    writers = {str(v.name): _from_front(v, readings[0].axis) for v, readings in stream.tensors.items()}
    readers = {layer.name: int(layer.transposed) for found in read.values() for layer in found}
    both = writers.keys() & readers.keys()
    if both:
        return f"the weight '{both.pop()}' both writes it and reads its norm"
    names = {norm: tuple(layer.name for layer in found) for norm, found in read.items()}
    tied_heads = tuple(_tied_head(norm, layer) for norm, layer in heads)
    return StreamBasis(stream.channels, writers, readers, names, tied_heads)


def _reading(tied: Sequence[LinearLayer]) -> list[Reading]:
    """How layers read the weight that they share with the stream, each with its axis over their features."""
    return [
        Reading(node, position, int(layer.transposed) - 2)
        for layer in tied
        for node, position in layer.weight.uses()
        if node is layer.node or (node.op_type == "Transpose" and {*node.outputs[0].consumers()} == {layer.node})
    ]


def _tied_head(norm: LoweredNorm, layer: LinearLayer) -> TiedHead:
    position = next(place for place, value in enumerate(layer.node.inputs) if value is layer.x)
    return TiedHead(norm, layer.name, str(layer.node.name), position)


def _from_front(value: ir.Value, axis: int) -> int:
    assert value.shape is not None
    return axis + len(value.shape)

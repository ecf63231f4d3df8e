"""The basis of a stream: which weights would have to change if its channels were mixed by a matrix.

A norm divides all channels of a token by one number, so that a model with norms does not care much in which basis its
stream is written (to RMSNorm any rotation is the same: SliceGPT, arXiv 2401.15024). An element-wise function does:
what it can stand in for depends on how the stream lies to its axes. Where every weight that writes into a stream and
every weight that reads its norms is known, the stream x can become x M for any invertible M: W M where it is
written, M^-1 W where it is read.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from dynorm_onnx.graph.fold.readers import layers_reading
from dynorm_onnx.graph.fold.stream import Stream, find_streams, is_own
from dynorm_onnx.graph.linear import find_linear_layers
from dynorm_onnx.graph.linear_layer import LinearLayer
from dynorm_onnx.graph.lower import LoweredNorm

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class StreamBasis:
    """A stream whose basis can be chosen.

    `writers` and `readers` are initializers, each with its axis over the stream's channels, counted from the front; no
    name is in both. `read` says which of the readers lie behind which norm.
    """

    channels: int
    writers: Mapping[str, int]
    readers: Mapping[str, int]
    read: Mapping[LoweredNorm, tuple[str, ...]]


def find_bases(graph: ir.Graph, norms: Sequence[LoweredNorm]) -> tuple[StreamBasis, ...]:
    """The streams of a lowered graph that `norms`, and nothing else, read. Why another is none is logged."""
    return tuple(basis for _, basis in bases_or_reasons(graph, norms) if not isinstance(basis, str))


def bases_or_reasons(
    graph: ir.Graph, norms: Sequence[LoweredNorm]
) -> list[tuple[tuple[LoweredNorm, ...], StreamBasis | str]]:
    """Every stream of `norms`, by the norms that read it, with its basis, or with a sentence that says why it has none;
    that is logged too."""
    layers = find_linear_layers(graph).layers
    found: list[tuple[tuple[LoweredNorm, ...], StreamBasis | str]] = []
    for stream in find_streams(graph, norms, ()):
        basis = _basis(stream, layers)
        if isinstance(basis, str):
            logger.info("the basis of the stream that %s reads stays: %s", stream.norms[0].site_name, basis)
        found.append((tuple(stream.norms), basis))
    return found


def _basis(stream: Stream, layers: Sequence[LinearLayer]) -> StreamBasis | str:
    """The basis of a stream, or why it has none."""
    if stream.obstacle is not None:
        return stream.obstacle
    if stream.cuts:
        return f"no weights give out a part of it ('{next(iter(stream.cuts)).name}')"
    for value, readings in stream.tensors.items():
        if not is_own(value, readings):
            return f"the weight '{value.name}' is read elsewhere too"
    read: dict[LoweredNorm, tuple[LinearLayer, ...]] = {}
    for norm in stream.norms:
        found = layers_reading(norm.y, layers)
        if isinstance(found, str):
            return f"behind {norm.site_name}: {found}"
        read[norm] = found
    writers = {str(v.name): _from_front(v, readings[0].axis) for v, readings in stream.tensors.items()}
    readers = {layer.name: int(layer.transposed) for found in read.values() for layer in found}
    both = writers.keys() & readers.keys()
    if both:
        return f"the weight '{both.pop()}' both writes it and reads its norm"
    names = {norm: tuple(layer.name for layer in found) for norm, found in read.items()}
    return StreamBasis(stream.channels, writers, readers, names)


def _from_front(value: ir.Value, axis: int) -> int:
    assert value.shape is not None
    return axis + len(value.shape)

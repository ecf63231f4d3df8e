"""Which linear layers are re-fitted together, and what each needs to see."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from dynorm_onnx.calibration.norms.calibrate import norm_points
from dynorm_onnx.calibration.stages.plan import SolvePoint, order_points, value_stages
from dynorm_onnx.graph.linear.find import find_linear_layers
from dynorm_onnx.graph.linear.linear_layer import LinearLayer
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.values.sizes import sized_by_values

log = logging.getLogger(__name__)

GRAM_LIMIT = 6 << 30
"""Bytes that the sums of one group of layers may take; a layer above it is left, and named."""


EVENNESS = 0.5
"""How far a residual stream's tokens are brought to one length: 0 not at all, 1 wholly (docs/quality.md). A function of
single channels stands in for a norm the better, the less the lengths of its tokens differ, and what the norm lost is
the length."""


@dataclasses.dataclass(frozen=True, eq=False)
class LayerGroup:
    """Linear layers that read the same x: they share its sums and are solved together.

    The target of a layer that writes into a stream also makes up for the stream's error so far, its lengths evened out
    by `evenness`; or, with None, as where channels are coupled, it is the original's own output. The errors that are
    left then are small, and hardly follow from what a layer reads: sixty writers that all make up for the same ones
    learn them by heart.
    """

    layers: tuple[LinearLayer, ...]
    writers: frozenset[str]  # layers that write into a stream whose error is known when they are solved
    evenness: float | None

    @property
    def x(self) -> str:
        """The name of the shared input."""
        return str(self.layers[0].x.name)

    @property
    def by_length(self) -> bool:
        """Whether a token's error counts relative to its length: where all layers write into a stream whose lengths are
        left as they are, and may be massive."""
        return self.evenness is None and len(self.writers) == len(self.layers)


NAMED = 4  # layers that a note names before it counts the rest


def group_layers(
    graph: ir.Graph, norms: Sequence[LoweredNorm], evenness: float | None = EVENNESS
) -> tuple[list[LayerGroup], tuple[str, ...]]:
    """The groups of layers that a norm can change, and notes on those that are left alone."""
    found = find_linear_layers(graph)
    left = dict(found.left)
    points = norm_points(graph, norms)
    sizes = sized_by_values(graph, [norm.y for norm in norms])
    behind = value_stages(graph, points)
    together: dict[tuple[str, int], list[LinearLayer]] = {}
    for layer in (*found.layers, *found.on_grid):
        if behind[str(layer.x.name)] <= 0:
            continue  # its input is the same in both models
        if layer.x in sizes:
            left[layer.label] = (
                f"how many tokens it sees follows from values ({sizes[layer.x]}), so that those of the original and of "
                "the converted model cannot be paired"
            )
            continue
        if bytes_of_sums(layer) > GRAM_LIMIT:
            left[layer.label] = f"its {layer.inputs} inputs are too many to sum up"
            continue
        together.setdefault((str(layer.x.name), layer.feature_axis), []).append(layer)
    members = [tuple(layers) for layers in together.values()]
    points += [_point(layers, ()) for layers in members]
    stages = value_stages(graph, points)
    place = {point.name: index for index, point in enumerate(order_points(graph, points))}
    groups = [
        LayerGroup(layers, frozenset(_writers(layers, stages, place[_group_name(layers)])), evenness)
        for layers in members
    ]
    return groups, tuple(_left_notes(left))


def _writers(layers: Sequence[LinearLayer], stages: dict[str, int], place: int) -> Iterator[str]:
    """The layers whose residual stream has an error, and one that is known when they are solved.

    A stream of stage 0 is the same in both models; one behind a parallel branch may not be there yet.
    """
    for layer in layers:
        if layer.residual is not None and 0 < stages[str(layer.residual.stream.name)] <= place:
            yield layer.name


def bytes_of_sums(layer: LinearLayer) -> int:
    """What the sums over tokens take that a layer is solved from, and those that its lambda is chosen by."""
    return 8 * 2 * (2 * layer.inputs**2 + 2 * layer.inputs * layer.outputs)


def _group_name(layers: Sequence[LinearLayer]) -> str:
    return "linear layers " + ", ".join(layer.name for layer in layers)


def group_point(group: LayerGroup, also_converted: Sequence[str] = ()) -> SolvePoint:
    """The group as a place to solve, with more values of the converted model if they are asked for."""
    streams = [
        str(layer.residual.stream.name)
        for layer in group.layers
        if layer.residual is not None and layer.name in group.writers
    ]
    point = _point(group.layers, streams)
    converted = (group.x,) if group.evenness is None else point.converted
    return dataclasses.replace(point, converted=(*converted, *also_converted))


def _point(layers: Sequence[LinearLayer], streams: Sequence[str]) -> SolvePoint:
    wanted = (str(layers[0].x.name), *streams)
    nodes = tuple(node for layer in layers for node in layer.nodes)
    return SolvePoint(_group_name(layers), nodes, original=wanted, converted=wanted)


def _left_notes(left: Mapping[str, str]) -> list[str]:
    """One sentence for each reason, since a quantised model has the same one for every layer; the log has all names."""
    names_of: dict[str, list[str]] = {}
    for name, reason in left.items():
        names_of.setdefault(reason, []).append(name)
        log.info("%s is left as it is: %s", name, reason)
    notes = []
    for reason, names in names_of.items():
        shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        notes.append(f"{shown} {'is left as it is' if len(names) == 1 else 'are left as they are'}: {reason}")
    return notes

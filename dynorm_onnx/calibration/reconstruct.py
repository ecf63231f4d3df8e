"""Method "reconstruct": fit every norm, and re-fit every linear layer behind it, in closed form.

Layers are solved in graph order on the inputs that the converted model gives them, towards what the
original puts out; the target of a layer that writes into the residual stream also makes up for the
stream's own error so far.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.data import signature
from dynorm_onnx.calibration.fit import Fit
from dynorm_onnx.calibration.last_layer import fit_logits_layer
from dynorm_onnx.calibration.norms import Calibrated, Solver, norm_point, norm_solvers, solve_in_order
from dynorm_onnx.calibration.plan import SolvePoint, order_points, value_stages
from dynorm_onnx.calibration.ridge import NormalSums, solve_ridge, training_and_held_out
from dynorm_onnx.calibration.stages import Activations
from dynorm_onnx.calibration.weights import row_weights
from dynorm_onnx.functions import Function
from dynorm_onnx.graph.linear import LinearLayer, find_linear_layers
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.rewrite import set_initializers
from dynorm_onnx.runtime.arrays import Feeds

log = logging.getLogger(__name__)

GRAM_LIMIT = 6 << 30
"""Bytes that the sums of one group of layers may take; a layer above it is left, and named."""

EVENNESS = 0.5
"""How far a residual stream's tokens are brought to one length: 0 not at all, 1 wholly (docs/quality.md)."""


@dataclasses.dataclass(frozen=True, eq=False)
class LayerGroup:
    """Linear layers that read the same x: they share its sums and are solved together."""

    layers: tuple[LinearLayer, ...]
    corrects_stream: frozenset[str]  # layers whose target carries the stream's error

    @property
    def x(self) -> str:
        """The name of the shared input."""
        return str(self.layers[0].x.name)


def reconstruct(
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    function: Function,
    batches: Sequence[Feeds],
    progress: Callable[[int, int], None],
) -> Calibrated:
    """Fit all norms and re-fit all linear layers behind the first. `lowered` is not changed."""
    groups, notes = _groups(lowered.graph, norms)
    logits = signature(lowered).logits
    fits: dict[str, Fit] = {}
    weights: dict[str, np.ndarray] = {}

    def solver(group: LayerGroup) -> Solver:
        def solve(converted: ir.Model, activations: Callable[[], Iterator[Activations]]) -> None:
            solved = solve_group(group, activations, logits)
            set_initializers(converted, solved)
            weights.update(solved)

        return solve

    solvers = norm_solvers(norms, function, fits) + [(_group_point(group), solver(group)) for group in groups]
    solve_in_order(lowered, solvers, batches, progress)
    return Calibrated(fits, weights, notes)


def solve_group(
    group: LayerGroup, activations: Callable[[], Iterator[Activations]], logits: str | None = None
) -> dict[str, np.ndarray]:
    """New values, by name, of the initializers of the group's layers.

    The layer whose output is `logits` is then fitted to the distribution that they stand for.
    """
    solved: dict[str, np.ndarray] = {}
    sums = _stream_sums(group, activations)
    for layer in group.layers:
        training, held_out = (part.of_layer(layer) for part in sums)
        ridge = solve_ridge(training, held_out)
        log.info("%s: lambda %s", layer.name, ridge.strength)
        weights = layer.parameters() + ridge.correction
        changed = ridge.strength is not None
        if logits is not None and layer.y is not None and layer.y.name == logits:
            fitted = fit_logits_layer(layer, weights, activations)
            weights, changed = (weights, changed) if fitted is None else (fitted, True)
        if changed:
            solved.update(layer.stored_parameters(weights))
    return solved


@dataclasses.dataclass
class _GroupSums:
    """What the layers of a group need, summed over tokens; F is the converted x, with a column of ones.

    gram: F^T F; change: F^T (x of the original - x); stream, by layer: F^T (what _stream_error() asks to add).
    """

    gram: np.ndarray
    change: np.ndarray
    stream: dict[str, np.ndarray]

    def add(self, f: np.ndarray, change: np.ndarray, stream: dict[str, np.ndarray]) -> None:
        """Add one batch: rows of tokens."""
        self.gram += f.T @ f
        self.change += f.T @ change
        for name, rows in stream.items():
            self.stream[name] = self.stream.get(name, 0.0) + (f.T @ rows).astype(np.float64)

    def of_layer(self, layer: LinearLayer) -> NormalSums:
        """The normal equations of one layer; the column of ones is its bias, if it has one."""
        cross = self.change @ layer.matrix()
        if layer.name in self.stream:
            cross = cross + self.stream[layer.name]
        size = layer.inputs + (layer.bias is not None)
        return NormalSums(self.gram[:size, :size], cross[:size])


def _stream_sums(group: LayerGroup, activations: Callable[[], Iterator[Activations]]) -> tuple[_GroupSums, _GroupSums]:
    """(sums to solve with, sums to choose lambda with). Products in float32, sums in float64."""
    size = group.layers[0].inputs
    parts = tuple(_GroupSums(np.zeros((size + 1, size + 1)), np.zeros((size + 1, size)), {}) for _ in range(2))
    for batch in activations():
        axis = group.layers[0].feature_axis
        original, converted = (_rows(values[group.x], axis) for values in (batch.original, batch.converted))
        counts = row_weights(batch.token_weights, np.moveaxis(batch.converted[group.x], axis, -1))
        usable = np.isfinite(original).all(1) & np.isfinite(converted).all(1) & (counts > 0)
        root = np.sqrt(counts[usable])[:, None]  # in both factors of every sum
        stream = {
            layer.name: root * _stream_error(layer, batch)[usable]
            for layer in group.layers
            if layer.name in group.corrects_stream
        }
        f = root * np.hstack([converted[usable], np.ones((len(root), 1), np.float32)])
        change = root * (original - converted)[usable]
        for part, rows in zip(parts, training_and_held_out(len(f)), strict=True):
            part.add(f[rows], change[rows], {name: error[rows] for name, error in stream.items()})
    return parts[0], parts[1]


def _stream_error(layer: LinearLayer, batch: Activations) -> np.ndarray:
    """What the layer must add to its original output so that the sum with the stream is what it should be.

    That is the original's sum with its length evened out: a function of single channels stands in for a
    norm the better, the less the lengths of its tokens differ, and what the norm lost is the length.
    """
    assert layer.residual is not None
    name, axis = str(layer.residual.stream.name), layer.feature_axis
    stream = _rows(batch.original[name], axis)
    output = _rows(batch.original[str(layer.x.name)], axis) @ layer.matrix().astype(np.float32)
    total = stream + output + layer.offset().astype(np.float32)
    length = np.sqrt(np.mean(np.square(total), axis=1, keepdims=True)) + 1e-30
    usual = np.exp(np.mean(np.log(length)))
    wanted = total * (usual / length) ** EVENNESS
    return wanted - output - layer.offset().astype(np.float32) - _rows(batch.converted[name], axis)


def _rows(array: np.ndarray, axis: int) -> np.ndarray:
    """[tokens, features] float32, the features from `axis`."""
    wide = np.moveaxis(np.asarray(array, np.float32), axis, -1)
    return wide.reshape(-1, wide.shape[-1])


def _groups(graph: ir.Graph, norms: Sequence[LoweredNorm]) -> tuple[list[LayerGroup], tuple[str, ...]]:
    """The groups of layers that a norm can change, and notes on those that are left alone."""
    found = find_linear_layers(graph)
    notes = [f"{name} is left as it is: {reason}" for name, reason in found.left.items()]
    points = [norm_point(norm) for norm in norms]
    behind = value_stages(graph, points)
    together: dict[tuple[str, int], list[LinearLayer]] = {}
    for layer in found.layers:
        if behind[str(layer.x.name)] <= 0:
            continue  # its input is the same in both models
        if _bytes_of_sums(layer) > GRAM_LIMIT:
            notes.append(f"{layer.name} is left as it is: its {layer.inputs} inputs are too many to sum up")
            continue
        together.setdefault((str(layer.x.name), layer.feature_axis), []).append(layer)
    members = [tuple(layers) for layers in together.values()]
    points += [_point(layers, ()) for layers in members]
    stages = value_stages(graph, points)
    place = {point.name: index for index, point in enumerate(order_points(graph, points))}
    groups = [
        LayerGroup(layers, frozenset(_correctable(layers, stages, place[_group_name(layers)]))) for layers in members
    ]
    return groups, tuple(notes)


def _correctable(layers: Sequence[LinearLayer], stages: dict[str, int], place: int) -> Iterator[str]:
    """The layers whose residual stream has an error, and one that is known when they are solved.

    A stream of stage 0 is the same in both models; one behind a parallel branch may not be there yet.
    """
    for layer in layers:
        if layer.residual is not None and 0 < stages[str(layer.residual.stream.name)] <= place:
            yield layer.name


def _bytes_of_sums(layer: LinearLayer) -> int:
    return 8 * 2 * (2 * layer.inputs**2 + 2 * layer.inputs * layer.outputs)


def _group_name(layers: Sequence[LinearLayer]) -> str:
    return "linear layers " + ", ".join(layer.name for layer in layers)


def _group_point(group: LayerGroup) -> SolvePoint:
    streams = [
        str(layer.residual.stream.name)
        for layer in group.layers
        if layer.residual is not None and layer.name in group.corrects_stream
    ]
    return _point(group.layers, streams)


def _point(layers: Sequence[LinearLayer], streams: Sequence[str]) -> SolvePoint:
    wanted = (str(layers[0].x.name), *streams)
    nodes = tuple(node for layer in layers for node in layer.nodes)
    return SolvePoint(_group_name(layers), nodes, original=wanted, converted=wanted)

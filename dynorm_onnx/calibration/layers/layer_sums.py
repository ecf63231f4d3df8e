"""What the ridge regressions of a group of layers are solved from, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from dynorm_onnx.calibration.layers.layer_groups import LayerGroup, bytes_of_sums
from dynorm_onnx.calibration.layers.ridge import Equations, NormalSums, TokenRows
from dynorm_onnx.calibration.stages.held_out import held_out_rows
from dynorm_onnx.calibration.stages.run_stages import Activations
from dynorm_onnx.calibration.stages.weights import row_weights
from dynorm_onnx.graph.linear.linear_layer import LinearLayer
from dynorm_onnx.runtime.memory import require_memory


class LayerData(Protocol):
    """Tokens gathered for a group of layers."""

    def add(self, f: np.ndarray, change: np.ndarray, stream: dict[str, np.ndarray]) -> None:
        """Add tokens (rows): the converted x with a column of ones, what x lacks of the original's, and by layer
        what _stream_error() asks to add."""

    def of_layer(self, layer: LinearLayer) -> Equations:
        """What one layer is solved from; the column of ones is its bias, if it has one."""


class GroupSums:
    """Sums over tokens, whose size does not depend on the number of tokens. Products in float32, sums in float64."""

    def __init__(self, inputs: int) -> None:
        self._gram = np.zeros((inputs + 1, inputs + 1))
        self._change = np.zeros((inputs + 1, inputs))
        self._stream: dict[str, np.ndarray] = {}

    def add(self, f: np.ndarray, change: np.ndarray, stream: dict[str, np.ndarray]) -> None:
        """See LayerData."""
        self._gram += f.T @ f
        self._change += f.T @ change
        for name, rows in stream.items():
            self._stream[name] = self._stream.get(name, 0.0) + (f.T @ rows).astype(np.float64)

    def of_layer(self, layer: LinearLayer) -> NormalSums:
        """See LayerData."""
        cross = self._change @ layer.matrix()
        if layer.name in self._stream:
            cross = cross + self._stream[layer.name]
        size = layer.inputs + (layer.bias is not None)
        return NormalSums(self._gram[:size, :size], cross[:size], float(self._gram[-1, -1]))


class GroupRows:
    """The tokens themselves: smaller, and solved faster, where they are fewer than a layer has inputs."""

    def __init__(self) -> None:
        self._batches: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []

    def add(self, f: np.ndarray, change: np.ndarray, stream: dict[str, np.ndarray]) -> None:
        """See LayerData."""
        self._batches.append((f, change, stream))

    def of_layer(self, layer: LinearLayer) -> TokenRows:
        """See LayerData."""
        matrix = layer.matrix().astype(np.float32)
        size = layer.inputs + (layer.bias is not None)
        targets = [change @ matrix + stream.get(layer.name, np.float32(0)) for _, change, stream in self._batches]
        features = np.concatenate([f for f, _, _ in self._batches])
        return TokenRows(features[:, :size], np.concatenate(targets), float(np.square(features[:, -1]).sum()))


def gather(group: LayerGroup, activations: Callable[[], Iterator[Activations]]) -> tuple[LayerData, LayerData]:
    """(tokens to solve with, tokens to choose lambda with)."""
    axis, inputs = group.layers[0].feature_axis, group.layers[0].inputs
    few = sum(batch.converted[group.x].size // inputs for batch in activations()) < inputs
    if not few:
        labels = ", ".join(layer.label for layer in group.layers)
        needed = max(map(bytes_of_sums, group.layers))
        require_memory(needed, f"the sums of {labels}", "--method fit does without")
    parts: tuple[LayerData, LayerData] = (GroupRows(), GroupRows()) if few else (GroupSums(inputs), GroupSums(inputs))
    for batch in activations():
        original, converted = (rows_of(values[group.x], axis) for values in (batch.original, batch.converted))
        counts = row_weights(batch.token_weights, np.moveaxis(batch.converted[group.x], axis, -1))
        writers = [layer for layer in group.layers if layer.name in group.writers]
        totals = {layer.name: _stream_total(layer, batch) for layer in writers}
        if group.by_length:
            counts = counts / np.maximum(np.mean(np.square(totals[group.layers[0].name]), axis=1), 1e-30)
        usable = np.isfinite(original).all(1) & np.isfinite(converted).all(1) & (counts > 0)
        root = np.sqrt(counts[usable])[:, None]  # in both factors of every sum
        stream = {}
        if group.evenness is not None:
            stream = {
                layer.name: root * _stream_error(layer, batch, totals[layer.name], group.evenness)[usable]
                for layer in writers
            }
        f = root * np.hstack([converted[usable], np.ones((len(root), 1), np.float32)])
        change = root * (original - converted)[usable]
        chooses = held_out_rows(batch.held_out, len(usable))[usable]
        for part, rows in zip(parts, (~chooses, chooses), strict=True):
            part.add(f[rows], change[rows], {name: error[rows] for name, error in stream.items()})
    return parts


def _stream_error(layer: LinearLayer, batch: Activations, total: np.ndarray, evenness: float) -> np.ndarray:
    """What the layer must add to its original output so that the sum with the stream is what it should be: the
    original's sum, `total`, its length evened out by `evenness`."""
    assert layer.residual is not None
    name, axis = str(layer.residual.stream.name), layer.feature_axis
    length = np.sqrt(np.mean(np.square(total), axis=1, keepdims=True)) + 1e-30
    usual = np.exp(np.mean(np.log(length)))
    wanted = total * (usual / length) ** evenness
    return wanted - (total - rows_of(batch.original[name], axis)) - rows_of(batch.converted[name], axis)


def _stream_total(layer: LinearLayer, batch: Activations) -> np.ndarray:
    """The original's stream behind the layer, [tokens, outputs] float32."""
    assert layer.residual is not None
    output = rows_of(batch.original[str(layer.x.name)], layer.feature_axis) @ layer.matrix().astype(np.float32)
    stream = rows_of(batch.original[str(layer.residual.stream.name)], layer.feature_axis)
    return stream + output + layer.offset().astype(np.float32)


def rows_of(array: np.ndarray, axis: int) -> np.ndarray:
    """[tokens, features] float32, the features from `axis`."""
    wide = np.moveaxis(np.asarray(array, np.float32), axis, -1)
    return wide.reshape(-1, wide.shape[-1])

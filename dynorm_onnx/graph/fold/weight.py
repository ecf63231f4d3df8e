"""The weight and bias of a replacement, y = w f(x) + b, moved into the linear layers that read y.

W' = diag(w) W, and b W is added to the layer's own bias. Nothing moves across f, which is bounded.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.functions import DOMAIN
from dynorm_onnx.graph.edit.emit import set_tensor
from dynorm_onnx.graph.files.prepare import clone
from dynorm_onnx.graph.fold.outcome import Fold, Folds, Unfolded
from dynorm_onnx.graph.fold.parity import Parity
from dynorm_onnx.graph.fold.readers import layers_reading
from dynorm_onnx.graph.fold.root_mean_square import BiasPlace
from dynorm_onnx.graph.linear.find import find_linear_layers
from dynorm_onnx.graph.linear.linear_layer import LinearLayer
from dynorm_onnx.graph.lower import LoweredNorm

logger = logging.getLogger(__name__)

SMALLEST_WEIGHT = 1e-3
"""Relative to the largest: a bias that no layer can take in is divided by the weight."""


@dataclasses.dataclass(frozen=True)
class _Move:
    """What moves, from which node into which layers."""

    site: str
    weight: ir.Value
    bias: ir.Value
    layers: tuple[LinearLayer, ...]
    places: tuple[BiasPlace, ...] | None  # None: the bias stays, divided by the weight

    def apply(self) -> None:
        weight, bias = (_array(value) for value in (self.weight, self.bias))
        for place in self.places or ():
            place.take_in(bias)  # with the layer's weight as it still is
        for layer in self.layers:
            parameters = layer.parameters()
            parameters[: layer.inputs] *= weight[:, None]
            stored = layer.stored_parameters(parameters)
            _store(layer.weight, stored[layer.name])
        left = np.zeros_like(bias) if self.places is not None else bias / weight
        _store(self.weight, np.ones_like(weight))
        _store(self.bias, left)

    def into(self) -> tuple[str, ...]:
        return tuple(str(layer.name) for layer in self.layers) + tuple(str(p.bias.name) for p in self.places or ())


def fold_weights(model: ir.Model, norms: Sequence[LoweredNorm], parity: Parity) -> Folds:
    """Folds the weight of every replacement for which that is exact; `model` changes in place.

    `model` is one in which replace() has put functions in the place of `norms`, which may be of a model that it
    is a clone of. Nothing is done that `parity` does not confirm.
    """
    moves, left = _moves(model, norms)
    if not moves:
        return Folds((), left)
    copy = clone(model)
    for move in _moves(copy, norms)[0]:
        move.apply()
    error, reason = parity.compare(model, copy)
    if reason is not None:
        return Folds((), left + tuple(Unfolded("weight", move.site, reason) for move in moves))
    for move in moves:
        move.apply()
    return Folds(tuple(Fold("weight", (move.site,), move.into()) for move in moves), left, error)


def _moves(model: ir.Model, norms: Sequence[LoweredNorm]) -> tuple[list[_Move], tuple[Unfolded, ...]]:
    layers = find_linear_layers(model.graph).layers
    nodes = {node.name: node for node in model.graph if node.domain == DOMAIN}
    moves, left = [], []
    for norm in norms:
        node = nodes.get(norm.node.name)
        if node is None:
            continue  # kept
        move = _move(node, norm.site_name, layers)
        if isinstance(move, str):
            left.append(Unfolded("weight", norm.site_name, move))
            logger.info("the weight of %s stays: %s", norm.site_name, move)
        else:
            moves.append(move)
    return moves, tuple(left)


def _move(node: ir.Node, site: str, layers: Sequence[LinearLayer]) -> _Move | str:
    first = 2 if len(node.outputs) == 2 else 1  # the Skip forms
    weight, bias = node.inputs[first : first + 2]
    assert weight is not None and bias is not None
    readers = layers_reading(node.outputs[0], layers)
    if isinstance(readers, str):
        return readers
    places = [BiasPlace.of(layer) for layer in readers]
    if all(place is not None for place in places):
        return _Move(site, weight, bias, readers, tuple(place for place in places if place is not None))
    size = np.abs(_array(weight))
    if size.min() < SMALLEST_WEIGHT * size.max():
        return "a layer that reads it has no bias, and some channels' weights are too small to divide the bias by"
    return _Move(site, weight, bias, readers, None)


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _store(value: ir.Value, array: np.ndarray) -> None:
    assert value.const_value is not None
    set_tensor(value, ir.tensor(array.astype(value.const_value.dtype.numpy()), name=value.name))

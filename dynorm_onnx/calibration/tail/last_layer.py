"""Fit the layer that makes the logits by minimising the KL divergence itself, which is convex in it.

Least squares on logits counts every word of the vocabulary alike; what matters is the distribution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dynorm_onnx.calibration.stages.held_out import held_out_rows
from dynorm_onnx.calibration.stages.run_stages import Activations
from dynorm_onnx.calibration.tail.curvature import MOST_TOKENS, Curvature, LayerCurvature, by_logits
from dynorm_onnx.calibration.tail.divergence import Distributions, log_softmax
from dynorm_onnx.calibration.tail.least_kl import are_too_many, least_kl, sampling_step
from dynorm_onnx.graph.linear.linear_layer import LinearLayer


def is_too_large(layer: LinearLayer) -> bool:
    """Whether the search for this layer's weights would take more memory than SEARCH_LIMIT."""
    return are_too_many(layer.inputs * layer.outputs)


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """Rows: the converted model's features (a one behind, for the bias), the original's log-probabilities."""

    features: np.ndarray  # [tokens, K (+ 1)] float32
    original: Distributions

    def kl(self, weights: np.ndarray) -> float:
        """Mean KL(original || converted), nats."""
        return sum(self.original[rows].kl(self.features[rows] @ weights) for rows in self.original.parts()) / len(
            self.original
        )

    def kl_and_gradient(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """The same and its gradient, [K (+ 1), V]."""
        value, gradient = 0.0, np.zeros(weights.shape)
        for rows in self.original.parts():
            features = self.features[rows]
            more, to_logits = self.original[rows].kl_and_gradient(features @ weights)
            value, gradient = value + more, gradient + features.T @ to_logits
        return value / len(self.original), gradient / len(self.original)

    def curvature(self, weights: np.ndarray) -> Curvature:
        """Of the KL by the weights."""
        some = self.features[:: max(1, len(self.features) // MOST_TOKENS)]
        by_words = by_logits(np.exp(log_softmax(some @ weights)))
        return Curvature([LayerCurvature.of(self.features, by_words)])


def fit_logits_layer(
    layer: LinearLayer, start: np.ndarray, activations: Callable[[], Iterator[Activations]]
) -> np.ndarray | None:
    """Weights [K, V] (and a last row for the bias, if the layer has one) of least KL, or None.

    `start` [K (+ 1), V] is where the search begins. None where held-out tokens gain nothing.
    """
    every = sampling_step(_tokens(activations, layer), layer.inputs * layer.outputs)
    training, held_out = _collect(layer, activations, every)
    if not len(training.original) or not len(held_out.original):
        return None

    def kl_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = training.kl_and_gradient(weights(flat))
        return value, gradient.ravel()

    def weights(flat: np.ndarray) -> np.ndarray:
        return flat.reshape(start.shape).astype(np.float32)

    found = least_kl(
        layer.label,
        kl_and_gradient,
        lambda flat: held_out.kl(weights(flat)),
        start.ravel(),
        training.curvature(start.astype(np.float32)),
        len(training.features),
    )
    return None if found is None else found.reshape(start.shape)


def _tokens(activations: Callable[[], Iterator[Activations]], layer: LinearLayer) -> int:
    return sum(batch.converted[str(layer.x.name)].size // layer.inputs for batch in activations())


def _collect(
    layer: LinearLayer, activations: Callable[[], Iterator[Activations]], every: int
) -> tuple[_Tokens, _Tokens]:
    """(tokens to fit on, tokens to stop by)."""
    x, weights = str(layer.x.name), layer.parameters().astype(np.float32)
    parts: tuple[list[_Tokens], list[_Tokens]] = ([], [])
    for batch in activations():
        original, converted = (_features(values[x], layer, every) for values in (batch.original, batch.converted))
        usable = np.isfinite(original).all(1) & np.isfinite(converted).all(1)
        features, words = converted[usable], Distributions.of_logits(original[usable] @ weights)
        chooses = held_out_rows(batch.held_out, batch.original[x].size // layer.inputs)[::every][usable]
        for part, rows in zip(parts, (~chooses, chooses), strict=True):
            part.append(_Tokens(features[rows], words[rows]))
    return _joined(parts[0]), _joined(parts[1])


def _features(x: np.ndarray, layer: LinearLayer, every: int) -> np.ndarray:
    """Every so many-th row, float32, with a one behind where the layer has a bias."""
    rows = np.asarray(x, np.float32).reshape(-1, x.shape[-1])[::every]
    return rows if layer.bias is None else np.hstack([rows, np.ones((len(rows), 1), np.float32)])


def _joined(parts: Sequence[_Tokens]) -> _Tokens:
    return _Tokens(np.concatenate([p.features for p in parts]), Distributions.joined([p.original for p in parts]))

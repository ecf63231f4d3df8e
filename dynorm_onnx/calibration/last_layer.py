"""Fit the layer that makes the logits by minimising the KL divergence itself, which is convex in it.

Least squares on logits counts every word of the vocabulary alike; what matters is the distribution.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dynorm_onnx.calibration.divergence import Distributions
from dynorm_onnx.calibration.held_out import held_out_rows
from dynorm_onnx.calibration.lbfgs import MEMORY, Objective, minimise
from dynorm_onnx.calibration.stages import Activations
from dynorm_onnx.graph.linear_layer import LinearLayer

log = logging.getLogger(__name__)

MOST_STEPS = 60
PATIENCE = 10  # steps without a gain on held-out tokens
WORK_LIMIT = 1.6e10
"""Tokens x inputs x outputs of one evaluation; above it every n-th token is taken."""

SEARCH_LIMIT = 4 << 30
"""Bytes that L-BFGS may take for its steps; layers that need more are not fitted."""


def is_too_large(layer: LinearLayer) -> bool:
    """Whether the search for this layer's weights would take more memory than SEARCH_LIMIT."""
    return are_too_many(layer.inputs * layer.outputs)


def are_too_many(weights: int) -> bool:
    """Whether a search for so many numbers would take more memory than SEARCH_LIMIT."""
    return 8 * 2 * (MEMORY + 3) * weights > SEARCH_LIMIT


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """Rows: the converted model's features (a one behind, for the bias), the original's log-probabilities."""

    features: np.ndarray  # [tokens, K + 1] float32
    original: Distributions

    def kl(self, weights: np.ndarray) -> float:
        """Mean KL(original || converted), nats."""
        return sum(self.original[rows].kl(self.features[rows] @ weights) for rows in self._parts()) / len(self.original)

    def kl_and_gradient(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """The same and its gradient, [K + 1, V]."""
        value, gradient = 0.0, np.zeros(weights.shape)
        for rows in self._parts():
            features = self.features[rows]
            more, by_logits = self.original[rows].kl_and_gradient(features @ weights)
            value, gradient = value + more, gradient + features.T @ by_logits
        return value / len(self.original), gradient / len(self.original)

    def _parts(self) -> Iterator[slice]:
        return self.original.parts()


def fit_logits_layer(
    layer: LinearLayer, start: np.ndarray, activations: Callable[[], Iterator[Activations]]
) -> np.ndarray | None:
    """Weights [K, V] (and a last row for the bias, if the layer has one) of least KL, or None.

    `start` [K (+ 1), V] is where the search begins. None where held-out tokens gain nothing.
    """
    every = sampling_step(_tokens(activations, layer), layer.inputs * layer.outputs)
    training, held_out = _collect(layer, activations, every)
    has_bias = layer.bias is not None

    def kl_and_gradient(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = training.kl_and_gradient(_full(weights, has_bias))
        return value, gradient[: len(weights)]

    return search(layer.label, kl_and_gradient, lambda weights: held_out.kl(_full(weights, has_bias)), start)


def sampling_step(tokens: int, weights: int, limit: float = WORK_LIMIT) -> int:
    """Every how many-th token is taken, so that tokens x weights keep within `limit`."""
    return max(1, round(tokens * weights / limit))


def search(
    name: str, training: Objective, held_out: Callable[[np.ndarray], float], start: np.ndarray
) -> np.ndarray | None:
    """Weights of less mean KL than `start`, by as many steps of L-BFGS as are best for held-out tokens.

    None where held-out tokens gain nothing.
    """
    steps, best = 0, held_out(start)
    first, found = best, None
    for step, weights in enumerate(itertools.islice(minimise(training, start.astype(np.float64)), MOST_STEPS), 1):
        kl = held_out(weights)
        if kl < best:
            steps, best, found = step, kl, weights
        elif step == steps + PATIENCE:
            break
    log.info("%s: held-out KL %.4f -> %.4f in %d steps", name, first, best, steps)
    return found


def _full(weights: np.ndarray, has_bias: bool) -> np.ndarray:
    """float32, with a row of zeros for the bias of a layer without."""
    wide = weights.astype(np.float32)
    return wide if has_bias else np.vstack([wide, np.zeros((1, wide.shape[1]), np.float32)])


def _tokens(activations: Callable[[], Iterator[Activations]], layer: LinearLayer) -> int:
    return sum(batch.converted[str(layer.x.name)].size // layer.inputs for batch in activations())


def _collect(
    layer: LinearLayer, activations: Callable[[], Iterator[Activations]], every: int
) -> tuple[_Tokens, _Tokens]:
    """(tokens to fit on, tokens to stop by)."""
    x = str(layer.x.name)
    weights = np.vstack([layer.matrix(), layer.offset()]).astype(np.float32)
    parts: tuple[list[_Tokens], list[_Tokens]] = ([], [])
    for batch in activations():
        original, converted = (_with_one(values[x], every) for values in (batch.original, batch.converted))
        usable = np.isfinite(original).all(1) & np.isfinite(converted).all(1)
        features, words = converted[usable], Distributions.of_logits(original[usable] @ weights)
        chooses = held_out_rows(batch.held_out, batch.original[x].size // layer.inputs)[::every][usable]
        for part, rows in zip(parts, (~chooses, chooses), strict=True):
            part.append(_Tokens(features[rows], words[rows]))
    return _joined(parts[0]), _joined(parts[1])


def _with_one(x: np.ndarray, every: int) -> np.ndarray:
    rows = np.asarray(x, np.float32).reshape(-1, x.shape[-1])[::every]
    return np.hstack([rows, np.ones((len(rows), 1), np.float32)])


def _joined(parts: Sequence[_Tokens]) -> _Tokens:
    return _Tokens(np.concatenate([p.features for p in parts]), Distributions.joined([p.original for p in parts]))

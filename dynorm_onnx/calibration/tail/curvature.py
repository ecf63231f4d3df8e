"""How curved the KL is by the weights of a layer, as a Kronecker product of what it reads and what becomes of it.

For y = x W the Hessian by W is about E[x x^T] (x) diag(c), where c_j is the mean curvature of the KL by y_j (Martens
and Grosse, arXiv 1503.05671, with the second factor's diagonal alone). Of the steps of a search it saves two in three.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

MOST_TOKENS = 2048  # that the curvature by logits is averaged over
_DAMPING = 1e-3  # of the mean curvature: for directions that no token has


@dataclasses.dataclass(frozen=True)
class LayerCurvature:
    """Of weights [K, N], float64: E[x x^T] = basis diag(features) basis^T, basis [K, K], and `outputs` [N]."""

    basis: np.ndarray
    features: np.ndarray
    outputs: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, outputs: np.ndarray) -> LayerCurvature:
        """x [T, K] are the tokens' features, outputs [N] the mean curvature of a token's KL by each output."""
        features, basis = np.linalg.eigh((x.T @ x).astype(np.float64) / len(x))
        return cls(basis, np.maximum(features, 0.0), np.asarray(outputs, np.float64))

    @classmethod
    def of_bias(cls, outputs: np.ndarray) -> LayerCurvature:
        """That of a bias [1, N] by itself, whose feature is one."""
        return cls(np.ones((1, 1)), np.ones(1), np.asarray(outputs, np.float64))

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weights."""
        return len(self.features), len(self.outputs)

    @property
    def trace(self) -> float:
        """The sum over all weights."""
        return float(self.features.sum() * self.outputs.sum())

    def solve(self, gradient: np.ndarray, ridge: float) -> np.ndarray:
        """(Hessian + ridge trace)^-1 gradient, [K, N]."""
        least = max((ridge + _DAMPING / gradient.size) * self.trace, np.finfo(np.float64).tiny)  # where nothing matters
        curvature = self.features[:, None] * self.outputs + least
        solved: np.ndarray = self.basis @ ((self.basis.T @ gradient) / curvature)
        return solved


@dataclasses.dataclass(frozen=True)
class Curvature:
    """Of the weights of several layers, which lie one after the other in a vector; between layers there is none."""

    layers: Sequence[LayerCurvature]

    def solve(self, gradient: np.ndarray, ridge: float) -> np.ndarray:
        """(Hessian + ridge traces)^-1 gradient, a vector."""
        return np.concatenate(
            [layer.solve(part, ridge).ravel() for layer, part in zip(self.layers, self._parts(gradient), strict=True)]
        )

    def traces(self) -> np.ndarray:
        """The sum over its layer for each weight, a vector."""
        return np.concatenate([np.full(np.prod(layer.shape), layer.trace) for layer in self.layers])

    def _parts(self, vector: np.ndarray) -> list[np.ndarray]:
        ends = np.cumsum([np.prod(layer.shape) for layer in self.layers])[:-1]
        return [part.reshape(layer.shape) for layer, part in zip(self.layers, np.split(vector, ends), strict=True)]


def by_logits(q: np.ndarray) -> np.ndarray:
    """The mean curvature [V] of the KL by each logit, where the tokens' probabilities are q [T, V]: q (1 - q)."""
    return np.asarray(np.mean(q * (1 - q), axis=0, dtype=np.float64))


def by_inputs(q: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """That of every token by what it multiplies with a weight [K, V] to logits, [T, K]: the weight's variance under
    q."""
    variance = q @ np.square(weight).T - np.square(q @ weight.T)
    return np.maximum(variance, 0)

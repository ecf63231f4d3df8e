"""The tokens of one batch as a norm's fit sees them."""

from __future__ import annotations

import dataclasses

import numpy as np

from dynorm_onnx.calibration.stages.held_out import HeldOut, held_out_rows
from dynorm_onnx.calibration.stages.weights import row_weights


@dataclasses.dataclass(frozen=True)
class Rows:
    """Usable tokens: finite in x and target, and no padding.

    `x` and `target` are [T, C] in the type of the model, `weights` float32 [T] > 0, `held_out` bool [T].
    """

    x: np.ndarray
    target: np.ndarray
    weights: np.ndarray
    held_out: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, target: np.ndarray, token_weights: np.ndarray | None, held_out: HeldOut | None) -> Rows:
        """From x and target [..., C], the weights of the tokens [batch, length] and what is held out."""
        rows, wanted = (np.asarray(array).reshape(-1, x.shape[-1]) for array in (x, target))
        return cls.of_tokens(rows, wanted, row_weights(token_weights, x), held_out_rows(held_out, len(rows)))

    @classmethod
    def of_tokens(cls, x: np.ndarray, target: np.ndarray, weights: np.ndarray, held_out: np.ndarray) -> Rows:
        """From x and target [T, C], the weights [T] and bool [T]: those of all tokens, usable or not."""
        usable = (weights > 0) & _finite(x) & _finite(target)
        return cls(x[usable], target[usable], weights[usable], held_out[usable])

    def part(self, *, held_out: bool) -> Rows:
        """The rows that are held out, or those that are not."""
        mask = self.held_out if held_out else ~self.held_out
        return Rows(self.x[mask], self.target[mask], self.weights[mask], self.held_out[mask])


def _finite(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.isfinite(np.asarray(rows, np.float32)).all(axis=1))

"""A rotation for a stream, and the errors of the functions before and after it, on tokens that it was not sought on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from dynorm_onnx.calibration.norms.fit import fit
from dynorm_onnx.calibration.norms.moments import Range, moments_of
from dynorm_onnx.calibration.rotation.search import JITTER, find_rotation
from dynorm_onnx.calibration.rotation.tokens import NormTokens
from dynorm_onnx.functions import Function

ALONE = 512
"""Channels up to which one thread computes products: they are over before another is there to help, and beside other
work two take four times as long as one."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A rotation [C, C] float64 of a stream, or the identity.

    `before` and `after` are the errors of the functions at its norms, relative, as the layers behind see them: the root
    of the mean square over norms and held-out tokens whose lengths vary. Each function is fitted and made steeper as in
    a conversion.
    `axes` are the channels that stay as they are.
    """

    rotation: np.ndarray
    before: float
    after: float
    axes: tuple[int, ...]


def choose_rotation(
    norms: Sequence[NormTokens],
    function: Function,
    axes: Sequence[int],
    rng: np.random.Generator,
    progress: Callable[[int, int], None],
) -> Chosen:
    """The rotation sought for the norms of one stream, which leaves `axes` alone, and the channels' mean where one is a
    LayerNorm."""
    channels = norms[0].x.shape[1]
    with threadpool_limits(1 if channels <= ALONE else None, user_api="blas"):
        rotation = find_rotation(norms, _fixed(norms, axes, channels), rng, progress)
        before, after = (error_in(norms, function, basis) for basis in (np.eye(channels), rotation))
    return Chosen(rotation, before, after, tuple(axes))


def error_in(norms: Sequence[NormTokens], function: Function, rotation: np.ndarray) -> float:
    """The error of the functions in the basis R [C, C], as Chosen has it."""
    return float(np.sqrt(np.mean([_error(tokens, function, rotation) for tokens in norms])))


def _fixed(norms: Sequence[NormTokens], axes: Sequence[int], channels: int) -> np.ndarray:
    """Orthonormal directions [C, k] that the rotation leaves as they are: axes, and the mean over the channels."""
    directions = [np.eye(channels)[:, list(axes)]]
    if any(tokens.norm.kind == "layer" for tokens in norms):
        rest = np.ones(channels)
        rest[list(axes)] = 0.0
        if rest.any():
            directions.append(rest[:, None] / np.sqrt(rest.sum()))
    return np.hstack(directions)


def _error(tokens: NormTokens, function: Function, rotation: np.ndarray) -> float:
    """The relative squared error of the function fitted in a basis, by tokens of jittered lengths; the same jitter for
    every basis."""
    lengths = np.exp(JITTER * np.random.default_rng(len(tokens.x)).standard_normal(len(tokens.x)))
    z, wanted = tokens.x * lengths[:, None] @ rotation, tokens.target @ rotation
    judged = tokens.held_out if tokens.held_out.any() else ~tokens.held_out
    solved = ~tokens.held_out if not tokens.held_out.all() else tokens.held_out
    extent = Range.of(z[solved])
    fitted = fit(function, moments_of(z[solved], wanted[solved], extent), extent, tokens.steeper)
    error = (function(z[judged], fitted.parameters) - wanted[judged]) @ rotation.T
    metric = tokens.metric.astype(np.float64)
    target = tokens.target[judged].astype(np.float64)
    return float(((error @ metric) * error).sum() / max(((target @ metric) * target).sum(), 1e-300))

"""Streams in which functions of single channels gain by a rotation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dynorm_onnx.calibration.checkpoint import Checkpoint
from dynorm_onnx.calibration.data import CalibrationData
from dynorm_onnx.calibration.norms.fit_rows import Leeway
from dynorm_onnx.calibration.rotation import Chosen, choose_rotation, tokens_of_streams
from dynorm_onnx.calibration.rotation.outcome import Turning
from dynorm_onnx.calibration.rotation.tokens import NormTokens
from dynorm_onnx.conversion.rotation.turned import (
    Rotated,
    found_once,
    names_of,
    turned_as_found,
    usable_bases,
    with_left,
)
from dynorm_onnx.functions import Function
from dynorm_onnx.graph.fold import Parity
from dynorm_onnx.graph.streams.basis import StreamBasis

LEAST_FREE = 3  # channels that may be turned: two, and one for the mean of LayerNorms


def turned_to_axes(
    given: Rotated,
    data: CalibrationData,
    function: Function,
    seed: int,
    parity: Parity,
    progress: Callable[[int, int], None],
    checkpoint: Checkpoint,
) -> Rotated:
    """Every stream turned whose functions then err less.

    Not where all of them are straight behind a gain of coupled channels, for which one basis is like another.
    """
    leeway = given.leeway
    straight = {site for site, own in leeway.items() if own.straight and own.most_coupled}
    if straight.issuperset(norm.site_name for norm in given.norms):
        return given
    bases, left = usable_bases(given.model, given.norms)
    bases = [basis for basis in bases if not straight.issuperset(names_of(basis))]
    known = {stream.sites for stream in given.rotations.left}
    left = [stream for stream in left if stream.sites not in known and not straight.issuperset(stream.sites)]

    def seek() -> dict[StreamBasis, Chosen | str]:
        rng = np.random.default_rng(seed)
        tokens = tokens_of_streams(given.model, bases, data.calibration, leeway, rng, progress)
        return {basis: _sought(function, basis, seen, leeway, rng, progress) for basis, seen in tokens.items()}

    found = found_once(checkpoint, "axes", bases, seek, _chosen)
    outcome, turned = turned_as_found(with_left(given, left), parity, found)
    done = tuple(
        Turning(names_of(basis), basis.channels, one.axes, one.before, one.after) for basis, one in turned.items()
    )
    return dataclasses.replace(outcome, rotations=dataclasses.replace(outcome.rotations, done=done))


def _chosen(rotation: np.ndarray, before: float, after: float, axes: list[int]) -> Chosen:
    return Chosen(rotation, before, after, tuple(axes))


def _axes(tokens: Sequence[NormTokens], leeway: Mapping[str, Leeway]) -> list[int]:
    """The channels that are coupled at a norm of the stream, and the massive ones of a stream with sinks."""
    if not any(leeway[one.norm.site_name].straight or leeway[one.norm.site_name].most_coupled for one in tokens):
        return []
    return np.flatnonzero(np.any([one.axes for one in tokens], axis=0)).tolist()


def _sought(
    function: Function,
    basis: StreamBasis,
    tokens: Sequence[NormTokens],
    leeway: Mapping[str, Leeway],
    rng: np.random.Generator,
    progress: Callable[[int, int], None],
) -> Chosen | str:
    """A rotation that makes the functions err less, or why there is none."""
    if not tokens:
        return "no token of the data reaches its norms"
    axes = _axes(tokens, leeway)
    if basis.channels - len(axes) < LEAST_FREE:
        return f"{len(axes)} of its {basis.channels} channels are massive or coupled, and stay as they are"
    found = choose_rotation(tokens, function, axes, rng, progress)
    if found.after < found.before:
        return found
    return f"the functions would err by {found.after:.3f}, and do by {found.before:.3f} as it is"

"""Streams rotated before they are calibrated: to norms nothing changes, to functions of single channels much does.

Exact up to rounding, which is proved on data; what it brings is measured on tokens that were not looked at.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.data import CalibrationData
from dynorm_onnx.calibration.fit_rows import Leeway
from dynorm_onnx.calibration.rotation import Chosen, choose_rotation, tokens_of_streams
from dynorm_onnx.calibration.rotation.outcome import NO_ROTATIONS, Rotations, Turning, Unturned
from dynorm_onnx.calibration.rotation.tokens import NormTokens
from dynorm_onnx.calibration.store import WeightStore
from dynorm_onnx.config import ConvertConfig
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.graph.basis import StreamBasis, bases_or_reasons
from dynorm_onnx.graph.fold import Parity
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.turn import turn, why_not
from dynorm_onnx.progress import StepClock
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.pieces import open_for_batches

log = logging.getLogger(__name__)

LARGEST = 1024
"""Channels of a stream up to which a rotation is sought: a step of the search takes so many cubed, and more."""

LEAST_FREE = 3  # channels that may be turned: two, and one for the mean of LayerNorms

WEIGHTS_LIMIT = 1 << 30
"""Bytes of turned weights that are kept in memory before they go to files."""


@dataclasses.dataclass(frozen=True)
class Rotated:
    """The lowered model with its streams turned, and its norms; both as they were where nothing was."""

    model: ir.Model
    norms: tuple[LoweredNorm, ...]
    rotations: Rotations = NO_ROTATIONS


def rotated(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    data: CalibrationData | None,
    leeway: Mapping[str, Leeway],
    clock: StepClock,
) -> Rotated:
    """Turns every stream for which that is exact and makes the functions err less; `lowered` stays as it is.

    Nothing is turned for an exact rewrite, nor where a training follows, which learns a basis of its own.
    """
    if not config.rotates or data is None:
        return Rotated(lowered, tuple(norms))
    with clock.step("rotate") as advance:
        outside = [norm for norm in norms if norm.node.graph is lowered.graph]
        bases, left = _usable(bases_or_reasons(lowered.graph, outside), leeway)
        rng = np.random.default_rng(config.seed)
        tokens = tokens_of_streams(lowered, bases, data.calibration, leeway, rng, advance) if bases else {}
        chosen: dict[StreamBasis, Chosen] = {}
        for basis, seen in tokens.items():
            found = _sought(config, basis, seen, leeway, rng, advance)
            if isinstance(found, str):
                left.append(Unturned(_names(basis), found))
            else:
                chosen[basis] = found
        outcome = _turned(config, lowered, norms, data, chosen, left)
    for stream in outcome.rotations.left:
        log.info("the stream that %s reads is not turned: %s", stream.sites[0], stream.reason)
    for done in outcome.rotations.done:
        line = "the stream that %s reads is turned: its functions err by %.3f instead of %.3f"
        log.info(line, done.sites[0], done.error_after, done.error_before)
    return outcome


def _usable(
    found: Sequence[tuple[tuple[LoweredNorm, ...], StreamBasis | str]], leeway: Mapping[str, Leeway]
) -> tuple[list[StreamBasis], list[Unturned]]:
    bases, left = [], []
    for norms, basis in found:
        reason = basis if isinstance(basis, str) else _too_large(basis) or why_not(basis)
        if reason is None and not isinstance(basis, str):
            bases.append(basis)
        else:
            left.append(Unturned(tuple(norm.site_name for norm in norms), str(reason)))
    return bases, left


def _too_large(basis: StreamBasis) -> str | None:
    if basis.channels <= LARGEST:
        return None
    return f"it has {basis.channels:,} channels; a rotation is sought of up to {LARGEST:,}"


def _axes(tokens: Sequence[NormTokens], leeway: Mapping[str, Leeway]) -> list[int]:
    """The channels that are coupled at a norm of the stream, and the massive ones of a stream with sinks."""
    if not any(leeway[one.norm.site_name].straight or leeway[one.norm.site_name].most_coupled for one in tokens):
        return []
    return np.flatnonzero(np.any([one.axes for one in tokens], axis=0)).tolist()


def _sought(
    config: ConvertConfig,
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
    found = choose_rotation(tokens, REGISTRY[config.to], axes, rng, progress)
    if found.after < found.before:
        return found
    return f"the functions would err by {found.after:.3f}, and do by {found.before:.3f} as it is"


def _turned(
    config: ConvertConfig,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    data: CalibrationData,
    chosen: Mapping[StreamBasis, Chosen],
    left: Sequence[Unturned],
) -> Rotated:
    """All streams turned, if that is proved to be exact."""
    if not chosen:
        return Rotated(lowered, tuple(norms), Rotations(left=tuple(left)))
    store = WeightStore(WEIGHTS_LIMIT)
    turned = turn(lowered, norms, {basis: found.rotation for basis, found in chosen.items()}, store.keep)
    error, reason = _parity(config, data).compare(lowered, turned.model)
    if reason is not None:
        failed = [Unturned(_names(basis), reason) for basis in chosen]
        return Rotated(lowered, tuple(norms), Rotations(left=(*left, *failed)))
    done = tuple(
        Turning(_names(basis), basis.channels, found.axes, found.before, found.after) for basis, found in chosen.items()
    )
    return Rotated(turned.model, turned.norms, Rotations(done, tuple(left), error, turned.changed))


def _parity(config: ConvertConfig, data: CalibrationData) -> Parity:
    def outputs(model: ir.Model) -> list[np.ndarray]:
        return list(run(open_for_batches(model, provider=config.provider), data.calibration[0]).values())

    return Parity(outputs, "calibration data")


def _names(basis: StreamBasis) -> tuple[str, ...]:
    return tuple(norm.site_name for norm in basis.read)

"""Streams whose norms may couple channels: turned so that few channels tell how long a token is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from dynorm_onnx.calibration.checkpoint import Checkpoint
from dynorm_onnx.calibration.data import CalibrationData
from dynorm_onnx.calibration.rotation import ChosenDirections, choose_directions, length_tokens_of
from dynorm_onnx.calibration.rotation.length_tokens import LengthTokens
from dynorm_onnx.calibration.rotation.outcome import LengthTurning, Unturned
from dynorm_onnx.conversion.rotation.turned import (
    Rotated,
    found_once,
    names_of,
    turned_as_found,
    usable_bases,
    with_left,
)
from dynorm_onnx.graph.fold import Parity
from dynorm_onnx.graph.streams.basis import StreamBasis


def turned_to_lengths(
    given: Rotated,
    data: CalibrationData,
    most: int | None,
    seed: int,
    parity: Parity,
    progress: Callable[[int, int], None],
    checkpoint: Checkpoint,
) -> Rotated:
    """Every stream turned whose norms may all couple channels, where these then tell a token's length better; `most`
    directions are sought, or as many as channels may be coupled."""
    coupled = {site: _at_most(most, own.most_coupled) for site, own in given.leeway.items()}
    if not any(coupled.values()):
        return given
    bases, left = usable_bases(given.model, given.norms)
    bases = [basis for basis in bases if all(coupled[site] for site in names_of(basis))]
    left = [stream for stream in left if any(coupled[site] for site in stream.sites)]
    others = [basis for basis in bases if any(norm.kind != "rms" for norm in basis.read)]
    left += [Unturned(names_of(basis), "directions of lengths are sought for RMSNorms only") for basis in others]
    bases = [basis for basis in bases if basis not in others]  # before the model is run for their tokens

    def seek() -> dict[StreamBasis, ChosenDirections | str]:
        rng = np.random.default_rng(seed)
        tokens = length_tokens_of(given.model, bases, data.calibration, coupled, rng, progress)
        return {basis: _sought(seen, rng, progress) for basis, seen in tokens.items()}

    found = found_once(checkpoint, "lengths", bases, seek, ChosenDirections)
    outcome, turned = turned_as_found(with_left(given, left), parity, found)
    return _with_lengths(outcome, turned)


def _at_most(most: int | None, coupled: int) -> int:
    return coupled if most is None else min(most, coupled)


def _sought(
    tokens: list[LengthTokens], rng: np.random.Generator, progress: Callable[[int, int], None]
) -> ChosenDirections | str:
    """Directions that tell lengths better than the channels do, or why there are none."""
    if not tokens:
        return "no token of the data reaches its norms"
    found = choose_directions(tokens, rng, progress)
    if isinstance(found, str) or found.after < found.before:
        return found
    told = f"its channels tell a token's squared length to {found.before:.3f}, and would to {found.after:.3f}"
    return f"{found.count} of {told}"


def _with_lengths(outcome: Rotated, turned: Mapping[StreamBasis, ChosenDirections]) -> Rotated:
    """The outcome with what was found told, and no more channels coupled than there are directions."""
    told, leeway = [], dict(outcome.leeway)
    for basis, found in turned.items():
        sites = names_of(basis)
        told.append(LengthTurning(sites, basis.channels, found.count, found.before, found.after))
        leeway |= {site: dataclasses.replace(leeway[site], most_coupled=found.count) for site in sites}
    rotations = dataclasses.replace(outcome.rotations, lengths=tuple(told))
    return dataclasses.replace(outcome, leeway=leeway, rotations=rotations)

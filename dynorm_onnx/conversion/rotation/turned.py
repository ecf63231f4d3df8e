"""A model with some of its streams turned, if that is proved to be exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.checkpoint import Checkpoint, Tree
from dynorm_onnx.calibration.data import CalibrationData
from dynorm_onnx.calibration.layers.store import WeightStore
from dynorm_onnx.calibration.norms.fit_rows import Leeway
from dynorm_onnx.calibration.rotation.outcome import NO_ROTATIONS, Rotations, Unturned
from dynorm_onnx.graph.fold import Parity
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.streams.basis import StreamBasis, bases_or_reasons
from dynorm_onnx.graph.streams.turn import turn, why_not
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.pieces import open_for_batches
from dynorm_onnx.runtime.session import Provider


class HasRotation(Protocol):
    """What a search gives."""

    @property
    def rotation(self) -> np.ndarray:
        """R [C, C] float64, orthogonal."""


Found = TypeVar("Found", bound=HasRotation)

LARGEST = 1024
"""Channels of a stream up to which a rotation is sought: a step of the search takes so many cubed, and more."""

WEIGHTS_LIMIT = 1 << 28
"""Bytes of turned weights that are kept in memory before they go to files."""


@dataclasses.dataclass(frozen=True)
class Rotated:
    """The lowered model with its streams turned, its norms, and what the fit of each may do (by site); as they were
    where nothing was turned."""

    model: ir.Model
    norms: tuple[LoweredNorm, ...]
    leeway: Mapping[str, Leeway]
    rotations: Rotations = NO_ROTATIONS


def usable_bases(model: ir.Model, norms: Sequence[LoweredNorm]) -> tuple[list[StreamBasis], list[Unturned]]:
    """The streams of norms outside bodies that can be turned, and the others, with why not."""
    outside = [norm for norm in norms if norm.node.graph is model.graph]
    bases, left = [], []
    for reading, basis in bases_or_reasons(model.graph, outside):
        reason = basis if isinstance(basis, str) else _too_large(basis) or why_not(basis)
        if reason is None and not isinstance(basis, str):
            bases.append(basis)
        else:
            left.append(Unturned(tuple(norm.site_name for norm in reading), str(reason)))
    return bases, left


def found_once(
    checkpoint: Checkpoint,
    name: str,
    bases: Sequence[StreamBasis],
    seek: Callable[[], Mapping[StreamBasis, Found | str]],
    made: Callable[..., Found],
) -> dict[StreamBasis, Found | str]:
    """What seek() finds of the streams, or a run that was cut has found and recorded by `name`; `made` makes a finding
    of its fields."""
    places = {basis: place for place, basis in enumerate(bases)}

    def sought() -> Tree:
        found = seek().items()
        return {"found": [[places[basis], one if isinstance(one, str) else _fields(one)] for basis, one in found]}

    tree = checkpoint.once(name, sought) if bases else {"found": []}
    return {bases[place]: one if isinstance(one, str) else made(**one) for place, one in tree["found"]}


def _fields(found: Any) -> dict[str, Any]:
    return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}


def turned_as_found(
    given: Rotated, parity: Parity, found: Mapping[StreamBasis, Found | str]
) -> tuple[Rotated, dict[StreamBasis, Found]]:
    """Every stream turned for which a rotation was found, if that is proved to be exact, and which these are; the
    others with the reason. What was found of each is for the caller to add."""
    chosen = {basis: one for basis, one in found.items() if not isinstance(one, str)}
    given = with_left(given, [Unturned(names_of(basis), one) for basis, one in found.items() if isinstance(one, str)])
    if not chosen:
        return given, {}
    store = WeightStore(WEIGHTS_LIMIT)
    turned = turn(given.model, given.norms, {basis: one.rotation for basis, one in chosen.items()}, store.keep)
    error, reason = parity.compare(given.model, turned.model)
    if reason is not None:
        return with_left(given, [Unturned(names_of(basis), reason) for basis in chosen]), {}
    moved = max(error or 0.0, given.rotations.relative_error or 0.0)
    changed = dict.fromkeys((*given.rotations.changed_initializers, *turned.changed))
    outcome = dataclasses.replace(given.rotations, relative_error=moved, changed_initializers=tuple(changed))
    return Rotated(turned.model, turned.norms, given.leeway, outcome), chosen


def with_left(given: Rotated, left: Sequence[Unturned]) -> Rotated:
    """The same, and more streams that stayed."""
    outcome = dataclasses.replace(given.rotations, left=(*given.rotations.left, *left))
    return dataclasses.replace(given, rotations=outcome)


def names_of(basis: StreamBasis) -> tuple[str, ...]:
    """The sites that read a stream."""
    return tuple(norm.site_name for norm in basis.read)


def _too_large(basis: StreamBasis) -> str | None:
    if basis.channels <= LARGEST:
        return None
    return f"it has {basis.channels:,} channels; a rotation is sought of up to {LARGEST:,}"


def parity_on(data: CalibrationData, provider: Provider) -> Parity:
    """Compares two models on calibration data."""

    def outputs(model: ir.Model) -> list[np.ndarray]:
        return list(run(open_for_batches(model, provider=provider), data.calibration[0]).values())

    return Parity(outputs, "calibration data")

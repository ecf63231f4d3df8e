"""What became of the streams of a model whose rotations were sought."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Turning:
    """A stream that was turned. `axes` are the channels that stayed; for the errors see choose.Chosen."""

    sites: tuple[str, ...]
    channels: int
    axes: tuple[int, ...]
    error_before: float
    error_after: float


@dataclasses.dataclass(frozen=True)
class LengthTurning:
    """A stream that was turned so that its first `directions` channels tell how long a token is; for the errors see
    lengths.ChosenDirections."""

    sites: tuple[str, ...]
    channels: int
    directions: int
    error_before: float
    error_after: float


@dataclasses.dataclass(frozen=True)
class Unturned:
    """A stream that stayed as it is, and why."""

    sites: tuple[str, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class Rotations:
    """All streams of a model, how far its outputs moved by the turning (None: nothing was turned), and the initializers
    that are not what they were."""

    lengths: tuple[LengthTurning, ...] = ()
    done: tuple[Turning, ...] = ()
    left: tuple[Unturned, ...] = ()
    relative_error: float | None = None
    changed_initializers: tuple[str, ...] = ()


NO_ROTATIONS = Rotations()

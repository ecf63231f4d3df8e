"""What was folded into what, and what was not, with the reason."""

from __future__ import annotations

import dataclasses
from typing import Literal

Kind = Literal["centring", "weight"]


@dataclasses.dataclass(frozen=True)
class Fold:
    """Norms that do less, and what does it instead."""

    kind: Kind
    sites: tuple[str, ...]
    into: tuple[str, ...]  # initializers that changed or are new
    nodes: tuple[str, ...] = ()  # that are new


@dataclasses.dataclass(frozen=True)
class Unfolded:
    """One norm whose fold would not have been exact, or would not have paid."""

    kind: Kind
    site: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Folds:
    """All folds of a model, and how far its outputs moved by them on random input (None: nothing was folded)."""

    done: tuple[Fold, ...] = ()
    left: tuple[Unfolded, ...] = ()
    error: float | None = None

    def __add__(self, other: Folds) -> Folds:
        errors = [error for error in (self.error, other.error) if error is not None]
        return Folds(self.done + other.done, self.left + other.left, max(errors, default=None))

    @property
    def changed_initializers(self) -> tuple[str, ...]:
        """Everything that folds went into, once."""
        return tuple(dict.fromkeys(name for fold in self.done for name in fold.into))


NO_FOLDS = Folds()

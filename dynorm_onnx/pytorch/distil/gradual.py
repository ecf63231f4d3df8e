"""Gradual replacement: norms give way to their functions one after the other, not all at the first step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dynorm_onnx.errors import UsageError
from dynorm_onnx.pytorch.modules import put

LAST_TURN = 0.5
"""By this share of the steps every norm is replaced."""


class Gradual:
    """Lends the student the teacher's norms until their turn comes.

    `order` holds paths of modules that both have, the student's replacing the teacher's. The first gives way
    before the first step; the others follow evenly until LAST_TURN of the steps.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, order: Sequence[str], steps: int) -> None:
        self._student = student
        self._replacements = {path: _module(student, path) for path in order}
        self._originals = {path: _module(teacher, path) for path in order}
        every = LAST_TURN * steps / max(len(order), 1)
        self._turns = {path: round(place * every) for place, path in enumerate(order)}

    def at(self, step: int) -> None:
        """The student as it is to be at a step."""
        for path, turn in self._turns.items():
            put(self._student, path, self._replacements[path] if step >= turn else self._originals[path])

    def finish(self) -> None:
        """The student with all its own modules."""
        for path, module in self._replacements.items():
            put(self._student, path, module)


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise UsageError(f"order names {path!r}, and {type(model).__name__} has no such module") from None

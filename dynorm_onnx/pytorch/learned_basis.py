"""The basis of a stream as something that is learned: a matrix that many weights are changed by together."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnedBasis(nn.Module):
    """M = I + `change`, [C, C], for a stream of C channels: W M where it is written, M^-1 W where it is read.

    M begins as the identity. It is computed in the weights' own type, whatever autocast would have, and once for all
    weights until forget() is called, as it must be before every forward pass.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(channels, channels))
        self._pair: tuple[Tensor, Tensor] | None = None

    def turned(self, weight: Tensor, axis: int, *, written: bool) -> Tensor:
        """A weight whose `axis` is over the stream's channels, in the basis as it is now."""
        with torch.autocast(self.change.device.type, enabled=False):
            matrix = self._matrices()[0 if written else 1].to(weight.dtype)
            return (weight.movedim(axis, -1) @ matrix).movedim(-1, axis)

    def forget(self) -> None:
        """What was computed for the last pass."""
        self._pair = None

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """M, and what its inverse is for a weight that is multiplied from the other side: M^-1 transposed."""
        if self._pair is None:
            matrix = torch.eye(len(self.change), device=self.change.device) + self.change
            self._pair = matrix, torch.linalg.inv(matrix).T
        return self._pair

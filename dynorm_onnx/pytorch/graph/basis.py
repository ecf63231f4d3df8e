"""A basis that is learned: a matrix that many weights of a graph are changed by together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class LearnedBasis(nn.Module):
    """M = I + `change`, [C, C], for a stream of C channels: W M where it is written, M^-1 W where it is read.

    `writers` and `readers` are initializers, each with its axis over the channels. M begins as the identity. It is
    computed in the weights' own type, whatever autocast would have.
    """

    def __init__(self, channels: int, writers: Mapping[str, int], readers: Mapping[str, int]) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(channels, channels))
        self.writers, self.readers = dict(writers), dict(readers)

    def changed(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Those of the weights that lie at the stream, in the basis as it is now."""
        with torch.autocast(self.change.device.type, enabled=False):
            matrix = torch.eye(len(self.change), device=self.change.device) + self.change
            back = torch.linalg.inv(matrix).T
            return {
                name: _along(weights[name], axis, change)
                for names, change in ((self.writers, matrix), (self.readers, back))
                for name, axis in names.items()
                if name in weights
            }


def _along(weight: torch.Tensor, axis: int, matrix: torch.Tensor) -> torch.Tensor:
    """sum_i weight[.. i ..] matrix[i, j], along an axis."""
    return (weight.movedim(axis, -1) @ matrix.to(weight.dtype)).movedim(-1, axis)

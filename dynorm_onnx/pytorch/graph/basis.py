"""Which weights of a graph are changed by a basis that is learned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from dynorm_onnx.pytorch.learned_basis import LearnedBasis


class GraphBasis(nn.Module):
    """A LearnedBasis, and `writers` and `readers`: initializers at its stream, each with its axis over the channels."""

    def __init__(self, channels: int, writers: Mapping[str, int], readers: Mapping[str, int]) -> None:
        super().__init__()
        self.basis = LearnedBasis(channels)
        self.writers, self.readers = dict(writers), dict(readers)

    def changed(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Those of the weights that lie at the stream, in the basis as it is now."""
        self.basis.forget()
        return {
            name: self.basis.turned(weights[name], axis, written=names is self.writers)
            for names in (self.writers, self.readers)
            for name, axis in names.items()
            if name in weights
        }

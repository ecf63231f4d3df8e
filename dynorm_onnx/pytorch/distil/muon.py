"""Muon: an optimiser for matrices, whose steps are the momentum with all its singular values made one.

Every direction of a matrix then moves alike, also those in which the gradient is small. After K. Jordan et al.,
"Muon: An optimizer for hidden layers in neural networks" (2024); the size of a step as in arXiv 2502.16982, so that
it is about that of Adam's at the same rate. torch.optim.Muon does the same, but always in bfloat16: 40 times as long on
a processor that does not compute in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5: in ITERATIONS they take singular values of 0.003 to 1 to between 0.7 and 1.2."""

ITERATIONS = 5
RELATIVE_STEP = 0.2  # the root mean square of a step, over that of an orthogonal matrix: about Adam's


class Muon(torch.optim.Optimizer):
    """Steps of root mean square RELATIVE_STEP * lr for matrices, along Nesterov's momentum made orthogonal.

    Args:
        params: parameters [rows, columns] or groups of them, as all optimisers of PyTorch take them.
        lr: the learning rate of groups that name none.
        momentum: how much of the last momentum is kept.
        dtype: that matrices are made orthogonal in: torch.bfloat16 suffices where the processor computes in it.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float = 0.0, momentum: float = 0.95, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step along the gradients that are there."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["momentum"])

    def _move(self, parameter: nn.Parameter, rate: float, keep: float) -> None:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        momentum = state.setdefault("momentum", torch.zeros_like(parameter))
        momentum.lerp_(gradient, 1 - keep)
        ahead = gradient.lerp(momentum, keep)
        size = RELATIVE_STEP * math.sqrt(max(parameter.shape))
        parameter.add_(orthogonal(ahead, self._dtype).to(parameter), alpha=-rate * size)


def orthogonal(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """About U V^T of a matrix U S V^T, [rows, columns], computed in `dtype`; of zeros, zeros."""
    first, third, fifth = QUINTIC
    wide = matrix.shape[0] <= matrix.shape[1]
    y = (matrix if wide else matrix.T).to(dtype)
    y = y / y.norm().clamp(min=1e-12)
    for _ in range(ITERATIONS):
        gram = y @ y.T
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), y, beta=first)
    return y if wide else y.T

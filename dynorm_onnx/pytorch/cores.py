"""The functions without weight and bias, on tensors: what modules and graphs with autograd compute."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dynorm_onnx.functions.dyisru import LARGEST_FLOAT32


def _dyisru(x: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    if x.dtype == torch.float32:  # x^2 must stay finite; the function is at its limit long before
        x = x.clamp(-LARGEST_FLOAT32, LARGEST_FLOAT32)
    return x / torch.sqrt(x * x + beta)


def _dyt(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return torch.tanh(alpha * x)


def _derf(x: torch.Tensor, alpha: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return torch.erf(alpha * x + shift)


CORES: dict[str, Callable[..., torch.Tensor]] = {"dyisru": _dyisru, "dyt": _dyt, "derf": _derf}
"""By the functions' names: of x [..., C] and the parameters [1] or [C], all of float32 or all of float64."""

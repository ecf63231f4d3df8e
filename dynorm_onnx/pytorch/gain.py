"""The gain of coupled channels (functions/coupling.py) in PyTorch, for modules and graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from dynorm_onnx.functions.coupling import LARGEST


def coupled_squares(x: Tensor, channels: Tensor) -> Tensor:
    """What coupled channels put into the sum: x [..., C] gives their bounded squares [..., k]."""
    return x.index_select(-1, channels).clamp(-LARGEST, LARGEST).square()


def gained(x: Tensor, channels: Tensor, strengths: Tensor) -> Tensor:
    """g x for x [..., C], float32 or float64; `channels` int64 [k], `strengths` [k] of any type."""
    # no product of matrices: autocast would round it
    squares = (strengths.to(x.dtype) * coupled_squares(x, channels)).sum(-1, keepdim=True)
    return x * torch.rsqrt(1 + squares)

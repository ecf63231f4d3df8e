"""Looking at a single module from outside: what it holds, and a copy of it that can be run in float64."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's own float parameters and buffers by name, not those of its children."""
    tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def in_double(module: nn.Module) -> nn.Module:
    """A copy on the CPU, in float64 and eval mode, without the hooks of the original."""
    other = copy.deepcopy(module)
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        getattr(other, hooks).clear()
    return other.to(device="cpu", dtype=torch.float64).eval()


def run_probe(module: nn.Module, *inputs: np.ndarray) -> np.ndarray | None:
    """The module's output in float64, if it runs and gives one of the shape of its first input."""
    try:
        with torch.no_grad():
            y = module(*(torch.from_numpy(x) for x in inputs))
    except Exception:  # a module of another kind fails in a way of its own
        return None
    return y.double().numpy() if isinstance(y, torch.Tensor) and y.shape == inputs[0].shape else None

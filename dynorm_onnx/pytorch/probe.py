"""Looking at a single module from outside: what it holds, and a copy of it that can be run in float64."""

from __future__ import annotations

import collections
import copy
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from dynorm_onnx.pytorch.inherit import CALL_HOOKS, STATE_HOOKS


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's own float parameters and buffers by name, not those of its children."""
    tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def is_made_anew(module: nn.Module) -> bool:
    """Whether something makes a tensor of the module before each call: a parametrization, or a hook as of prune."""
    if parametrize.is_parametrized(module):
        return True
    plain = [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return any(value.grad_fn is not None for value in plain) or bool(plain and module._forward_pre_hooks)


def in_double(module: nn.Module) -> nn.Module:
    """A copy on the CPU, in float64 and eval mode, without the hooks of the original."""
    hooks = [getattr(part, kind) for part in module.modules() for kind in (*CALL_HOOKS, *STATE_HOOKS)]
    instead: dict[int, Any] = {id(found): collections.OrderedDict() for found in hooks}
    other = copy.deepcopy(module, instead)
    return other.to(device="cpu", dtype=torch.float64).eval()


def run_probe(module: nn.Module, *inputs: np.ndarray) -> np.ndarray | None:
    """The module's output in float64, if it runs and gives one of the shape of its first input."""
    try:
        with torch.no_grad():
            y = module(*(torch.from_numpy(x) for x in inputs))
    except Exception:  # a module of another kind fails in a way of its own
        return None
    return y.double().numpy() if isinstance(y, torch.Tensor) and y.shape == inputs[0].shape else None

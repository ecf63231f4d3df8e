"""What is trained, and how fast: AdamW with warm-up and a cosine, every rate relative to the parameter's size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import nn

from dynorm_onnx.errors import UsageError
from dynorm_onnx.pytorch.graph import GraphModule
from dynorm_onnx.pytorch.nn import ElementwiseNorm

TRAIN = ("norms", "all")
WARM_UP = 0.05  # of the steps
LAST = 0.02  # of the rate, at the end
BETAS = (0.9, 0.98)
LEAST_SIZE = 0.02  # what a parameter near zero counts as
BASIS_SIZE = 0.5  # what the entries of a basis, the identity at first, count as


@dataclasses.dataclass(frozen=True)
class Trained:
    """One parameter: `size` is its root mean square when training begins, which rates are relative to."""

    name: str
    parameter: nn.Parameter
    is_norm: bool
    size: float


def trained_parameters(student: nn.Module, train: str) -> list[Trained]:
    """The parameters of the functions that stand in for norms, or with train="all" every weight.

    A shared parameter comes once. Raises UsageError where there is none, or `train` is something else.
    """
    if train not in TRAIN:
        raise UsageError(f"train={train!r} is not one of {', '.join(TRAIN)}")
    if isinstance(student, GraphModule):
        norms = {id(parameter) for parameter in student.norm_parameters()}
        logarithms = {id(parameter) for parameter in student.logarithms()}
        named = student.learned()
    else:
        inside = [m for m in student.modules() if isinstance(m, ElementwiseNorm)]
        norms = {id(parameter) for module in inside for parameter in module.parameters()}
        logarithms = {id(p) for module in inside for name, p in module.named_parameters() if name.startswith("log_")}
        named = {name: p for name, p in student.named_parameters() if p.requires_grad or id(p) in norms}
    bases = student.bases() if isinstance(student, GraphModule) and train == "all" else {}
    found = [
        Trained(name, parameter, id(parameter) in norms, 1.0 if id(parameter) in logarithms else _size(parameter))
        for name, parameter in named.items()
        if train == "all" or id(parameter) in norms
    ]
    found += [Trained(name, parameter, False, BASIS_SIZE) for name, parameter in bases.items()]
    if not found:
        raise UsageError(f"train={train!r}: the student has no such parameter; were its norms replaced?")
    return found


def make_optimizer(trained: Sequence[Trained], rate: float, norm_rate: float) -> torch.optim.AdamW:
    """AdamW without decay; the group's "peak" is what rate_at() is a share of."""
    groups = [
        {"params": [t.parameter], "peak": (norm_rate if t.is_norm else rate) * t.size, "lr": 0.0} for t in trained
    ]
    return torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0, eps=1e-10)


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """The rates of one step: linear warm-up, then half a cosine down to LAST of the peak."""
    share = rate_at(step, steps)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def rate_at(step: int, steps: int) -> float:
    """The share of the peak at step 0 .. steps - 1."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def _size(parameter: nn.Parameter) -> float:
    return max(float(parameter.float().square().mean().sqrt()), LEAST_SIZE)

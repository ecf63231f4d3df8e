"""What is trained, and how fast: Muon for matrices, AdamW for the rest, every rate relative to the parameter's size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence, Set

import torch
from torch import nn

from dynorm_onnx.errors import UsageError
from dynorm_onnx.pytorch.distil.module_basis import learned_bases
from dynorm_onnx.pytorch.distil.muon import Muon
from dynorm_onnx.pytorch.graph import GraphModule
from dynorm_onnx.pytorch.nn import ElementwiseNorm

TRAIN = ("norms", "all")
WARM_UP = 0.05  # of the steps
LAST = 0.02  # of the rate, at the end
BETAS = (0.9, 0.98)
MATRIX_MOMENTUM = 0.95
MATRIX_RATE = 2.0  # of Muon, over AdamW's
LEAST_SIZE = 0.02  # what a parameter near zero counts as
OVER_MEDIAN = 20.0  # what a vector's root mean square counts as at most, over the median of its entries
BASIS_SIZE = 0.5  # what the entries of a basis, the identity at first, count as


@dataclasses.dataclass(frozen=True)
class Trained:
    """One parameter: `size` is its root mean square when training begins, which rates are relative to; of a vector with
    few entries far above all others, that of the others.

    `is_matrix`: a layer's, that Muon moves; tables of embeddings and what gives logits are none.
    """

    name: str
    parameter: nn.Parameter
    is_norm: bool
    is_matrix: bool
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
        tables = student.tables()
    else:
        inside = [m for m in student.modules() if isinstance(m, ElementwiseNorm)]
        norms = {id(parameter) for module in inside for parameter in module.parameters()}
        logarithms = {id(p) for module in inside for name, p in module.named_parameters() if name.startswith("log_")}
        named = {name: p for name, p in student.named_parameters() if p.requires_grad or id(p) in norms}
        tables = [module.weight for module in student.modules() if isinstance(module, nn.Embedding)]
    shapes = {tuple(sorted(table.shape)) for table in tables}
    bases = {}
    if train == "all":
        bases = student.bases() if isinstance(student, GraphModule) else learned_bases(student)
    inside_bases = {id(parameter) for parameter in bases.values()}
    found = [
        Trained(
            name,
            parameter,
            is_norm=id(parameter) in norms,
            is_matrix=id(parameter) not in norms and _is_matrix(parameter, shapes),
            size=1.0 if id(parameter) in logarithms else _size(parameter),
        )
        for name, parameter in named.items()
        if (train == "all" and id(parameter) not in inside_bases) or id(parameter) in norms
    ]
    found += [Trained(name, basis, is_norm=False, is_matrix=False, size=BASIS_SIZE) for name, basis in bases.items()]
    if not found:
        raise UsageError(f"train={train!r}: the student has no such parameter; were its norms replaced?")
    return found


def make_optimizers(
    trained: Sequence[Trained], rate: float, norm_rate: float, dtype: torch.dtype
) -> tuple[torch.optim.Optimizer, ...]:
    """AdamW without decay, and Muon (computing in `dtype`) if there is a matrix; a group's "peak" is what rate_at() is
    a share of.
    """
    matrices, others = (
        [
            {"params": [t.parameter], "peak": factor * (norm_rate if t.is_norm else rate) * t.size, "lr": 0.0}
            for t in trained
            if t.is_matrix is wanted
        ]
        for wanted, factor in ((True, MATRIX_RATE), (False, 1.0))
    )
    optimizers: list[torch.optim.Optimizer] = []
    if others:
        optimizers.append(torch.optim.AdamW(others, betas=BETAS, weight_decay=0.0, eps=1e-10, fused=True))
    if matrices:
        optimizers.append(Muon(matrices, momentum=MATRIX_MOMENTUM, dtype=dtype))
    return tuple(optimizers)


def set_rates(optimizers: Sequence[torch.optim.Optimizer], step: int, steps: int) -> None:
    """The rates of one step: linear warm-up, then half a cosine down to LAST of the peak."""
    share = rate_at(step, steps)
    for optimizer in optimizers:
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
    size = float(parameter.float().square().mean().sqrt())
    if parameter.ndim == 1:  # the weights of functions that stand for norms of massive channels reach from 0.1 to 1e6
        size = min(size, OVER_MEDIAN * float(parameter.float().abs().median()))
    return max(size, LEAST_SIZE)


def _is_matrix(parameter: nn.Parameter, tables: Set[tuple[int, ...]]) -> bool:
    """Whether it has two sides, other ones than an embedding and the layer of the logits have."""
    return parameter.ndim == 2 and min(parameter.shape) > 1 and tuple(sorted(parameter.shape)) not in tables

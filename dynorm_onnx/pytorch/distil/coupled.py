"""The functions with coupled channels that a student has, whether it is a model of modules or a graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from dynorm_onnx.functions import Coupling, Function
from dynorm_onnx.functions.coupling import INPUTS
from dynorm_onnx.pytorch.distil.fading import EXPONENTS, CoupledNorm, Fading, Plan, plan, without_zeros
from dynorm_onnx.pytorch.distil.losses import MASK
from dynorm_onnx.pytorch.gain import coupled_squares
from dynorm_onnx.pytorch.graph import GraphModule
from dynorm_onnx.pytorch.nn import ElementwiseNorm

OBSERVED_TOKENS = 16_384
"""On so many tokens it is looked at how large coupled channels are."""


def coupled_norms(student: nn.Module) -> dict[str, CoupledNorm]:
    """By the name of the node, or the path of the module."""
    if isinstance(student, GraphModule):
        return _in_graph(student)
    return {path: _of_module(module) for path, module in _coupled_modules(student).items()}


@torch.no_grad()
def observed_squares(student: nn.Module, call: Callable[[Any], Any], batches: Iterable[Any]) -> dict[str, Tensor]:
    """x_j^2 of the coupled channels, [tokens, k] float32, by the names of coupled_norms(); padding left out.

    `call` calls the student with a batch. Batches are taken from the first on, until OBSERVED_TOKENS were seen.
    """
    seen: dict[str, list[Tensor]] = defaultdict(list)
    mask: Tensor | None = None

    def see(name: str, x: Tensor, channels: Tensor) -> None:
        rows = coupled_squares(x.float(), channels)
        shown = mask is not None and mask.shape == rows.shape[:-1]
        seen[name].append(rows[mask.bool()] if shown and mask is not None else rows.flatten(0, -2))

    with ExitStack() as hooks:
        for path, module in _coupled_modules(student).items():
            assert module.coupled_channels is not None
            hooks.callback(module.register_forward_pre_hook(_hook(see, path, module.coupled_channels)).remove)
        for batch in batches:
            mask = batch.get(MASK) if isinstance(batch, dict) else None
            if isinstance(student, GraphModule):
                for found, x in student.run_functions(batch):
                    if INPUTS[0] in found.inputs:
                        see(found.name, x, student.constant(found.inputs[INPUTS[0]]))
            else:
                call(batch)
            if seen and min(sum(map(len, rows)) for rows in seen.values()) >= OBSERVED_TOKENS:
                break
    return {name: torch.cat(rows) for name, rows in seen.items()}


def begin_fading(
    student: nn.Module, call: Callable[[Any], Any], batches: Iterable[Any], keep: int, steps: int,
    plans: Mapping[str, Any],
) -> Fading:  # fmt: skip
    """The fading of a student's coupled channels down to `keep` of each function, as observed on the batches.

    `plans` are those of a run that was interrupted, its Fading.state(); empty for a new one.
    """
    norms = coupled_norms(student)
    if plans:
        return Fading(norms, {name: Plan(**saved) for name, saved in plans.items()}, steps)
    squares = observed_squares(student, call, batches)
    made = {name: plan(squares[name], norm.log_strengths.exp(), keep) for name, norm in norms.items()}
    return Fading(norms, made, steps)


def let_go(student: nn.Module) -> None:
    """Leaves out, of the modules of a student, the coupled channels whose strength is zero."""
    for module in _coupled_modules(student).values():
        parameters = module.to_parameters()
        assert parameters.coupling is not None
        left: Coupling | None = without_zeros(parameters.coupling)
        if left is None or len(left.channels) < len(parameters.coupling.channels):
            module.couple(left)


def _coupled_modules(student: nn.Module) -> dict[str, ElementwiseNorm]:
    return {
        path: module
        for path, module in student.named_modules()
        if isinstance(module, ElementwiseNorm) and module.coupled_channels is not None
    }


def _hook(see: Callable[[str, Tensor, Tensor], None], path: str, channels: Tensor) -> Callable[..., None]:
    return lambda module, inputs: see(path, inputs[0], channels)


def _of_module(module: ElementwiseNorm) -> CoupledNorm:
    assert module.coupled_channels is not None and module.log_coupling is not None
    name = _steepness(module.function)
    stored = next(name for name in module.stored if name.removeprefix("log_") in EXPONENTS)
    steepness = getattr(module, stored)
    return CoupledNorm(
        module.coupled_channels, module.log_coupling, steepness, stored.startswith("log_"), EXPONENTS[name]
    )


def _in_graph(student: GraphModule) -> dict[str, CoupledNorm]:
    logarithms = {id(parameter) for parameter in student.logarithms()}
    found = {}
    for function in student.functions():
        if INPUTS[0] not in function.inputs:
            continue
        channels, strengths = (function.inputs[name] for name in INPUTS)
        scalar = _steepness(function.function)
        steepness = student.parameter(function.inputs[scalar])
        found[function.name] = CoupledNorm(
            student.constant(channels),
            student.parameter(strengths),
            steepness,
            id(steepness) in logarithms,
            EXPONENTS[scalar],
        )
    return found


def _steepness(function: Function) -> str:
    return next(name for name in function.parameter_names if name in EXPONENTS)

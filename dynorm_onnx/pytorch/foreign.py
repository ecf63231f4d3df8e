"""DyT, DyISRU and Derf modules that others wrote, taken for what they compute, not for what they are called."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
from torch import nn

from dynorm_onnx.functions import Function, NormParameters
from dynorm_onnx.pytorch.modules import swapped_for_good
from dynorm_onnx.pytorch.nn import MODULES, ElementwiseNorm
from dynorm_onnx.pytorch.probe import in_double, is_made_anew, own_tensors, run_probe

Mappings: TypeAlias = Mapping[type[nn.Module], Callable[[nn.Module], ElementwiseNorm]]

_SAME = 1e-5  # relative; a module that casts to float32 inside agrees to about 1e-7
_MOST_TENSORS = 5
_MOST_CHANNELS = 64  # that are compared; the module itself runs on all

_TRANSFORMS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda v: v,
    np.exp,
    lambda v: np.logaddexp(0.0, v),  # softplus
    np.square,
)
"""How a parameter may be stored, beside as it is."""


def as_dynorm(model: nn.Module, mappings: Mappings | None = None) -> list[str]:
    """Replace foreign modules of the three functions in `model` by ours, in place; returns their paths.

    A module counts when it has no children, holds vectors of one length C and scalars only, and computes one
    of the functions of them on a probe over the last axis. `mappings` gives, for classes that do not,
    a function from the module to ours: {DynamicTanh: lambda m: DyT(...)}. Types and devices are kept.
    """

    def ours(module: nn.Module) -> nn.Module | None:
        return None if isinstance(module, ElementwiseNorm) else as_dynorm_module(module, mappings)

    return swapped_for_good(model, ours)


def as_dynorm_module(module: nn.Module, mappings: Mappings | None = None) -> ElementwiseNorm | None:
    """One module as ours: itself if it is one, a new one if it is known or recognised, else None."""
    if isinstance(module, ElementwiseNorm):
        return module
    for known, convert in (mappings or {}).items():
        if isinstance(module, known):
            return convert(module)
    found = _recognise(module)
    if found is None:
        return None
    function, parameters = found
    kind = next(iter(own_tensors(module).values()))
    ours = MODULES[function.name].from_parameters(parameters, device=kind.device, dtype=kind.dtype)
    return ours.train(module.training)


def _recognise(module: nn.Module) -> tuple[Function, NormParameters] | None:
    tensors = own_tensors(module)
    if not 1 <= len(tensors) <= _MOST_TENSORS or next(module.children(), None) is not None:
        return None
    if is_made_anew(module):
        return None
    channels = max(tensor.numel() for tensor in tensors.values())
    if any(tensor.numel() not in (1, channels) or tensor.is_meta for tensor in tensors.values()) or channels < 2:
        return None
    x = np.random.default_rng(0).standard_normal((3, 5, channels)) * np.array([0.3, 2.0, 20.0])[:, None, None]
    wide = in_double(module)
    y = run_probe(wide, x)
    if y is None or not _is_elementwise(wide, x, y):
        return None
    arrays = [t.detach().double().reshape(-1).numpy() for t in own_tensors(wide).values()]
    arrays.sort(key=len)  # where several readings agree, a scalar is the steepness and a vector the weight
    for function in (cls.function for cls in MODULES.values()):
        for guess in _guesses(function, arrays, channels):
            if _agrees(function, guess, x, y):
                return function, guess
    return None


def _agrees(function: Function, guess: NormParameters, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether the function of those parameters takes x to y, in the first channels."""
    seen = slice(0, _MOST_CHANNELS)
    scalars = {name: value[seen] for name, value in guess.scalars.items()}
    with np.errstate(all="ignore"):
        ours = function.reference(x[..., seen], guess.weight[seen], guess.bias[seen], **scalars)
    return bool(np.linalg.norm(ours - y[..., seen]) <= _SAME * (np.linalg.norm(y[..., seen]) or 1.0))


def _is_elementwise(module: nn.Module, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether y follows x, and nothing but the first channel of y the first channel of x."""
    moved = x.copy()
    moved[..., 0] += 1.0
    other = run_probe(module, moved)
    follows = bool(np.ptp(y, axis=(0, 1)).any())  # with a weight of zeros it could be any of the functions
    return follows and other is not None and np.array_equal(other[..., 1:], y[..., 1:])


def _guesses(function: Function, arrays: list[np.ndarray], channels: int) -> Iterator[NormParameters]:
    """Every way to read the arrays as the function's parameters, each used once; all of them first."""
    names = function.parameter_names
    for has_weight, has_bias in ((True, True), (True, False), (False, True), (False, False)):
        needed = len(names) + has_weight + has_bias
        for chosen in itertools.permutations(arrays, needed):
            scalars, rest = chosen[: len(names)], list(chosen[len(names) :])
            bias = np.resize(rest.pop(), channels) if has_bias else np.zeros(channels)
            stored_weight = np.resize(rest.pop(), channels) if has_weight else np.ones(channels)
            for transforms in itertools.product(_TRANSFORMS, repeat=len(names)):
                values = {n: t(v) for n, t, v in zip(names, transforms, scalars, strict=True)}
                for weight in (stored_weight, 1 + stored_weight) if has_weight else (stored_weight,):
                    if "beta" not in values or np.all(values["beta"] > 0):
                        yield NormParameters(weight, bias, values)

"""Recognising a module as RMSNorm or LayerNorm by what it computes on a probe, whatever its class is called.

With n(x) = x / sqrt(mean(x^2)), or the same of x - mean(x), over the last axis, a norm computes
y = w n(x) + b at every scale of x. w and b are measured, so that it does not matter how they are stored
(1 + w, as in Gemma; none at all). Gated norms take a second tensor: n(x silu(gate)) or n(x) silu(gate).
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dynorm_onnx.graph.norm_site import Kind
from dynorm_onnx.pytorch.nn import ElementwiseNorm
from dynorm_onnx.pytorch.probe import in_double, is_made_anew, own_tensors, run_probe

Gate = Literal["before", "after"]

_SAME = 1e-5  # relative; a module that casts to float32 inside agrees to about 1e-7
_LARGE, _LARGER, _SMALL = 30.0, 1000.0, 1e-4  # scales of the probe: epsilon matters in the last alone
_MOST_TENSORS = 3
_UNKNOWN_CHANNELS = 24  # a module without parameters is tried with so many
_CHANNEL_ATTRIBUTES = ("normalized_shape", "hidden_size", "dim", "channels")


@dataclasses.dataclass(frozen=True, eq=False)
class Norm:
    """A module that is a norm over its last axis: y = weight * n(x) + bias.

    `channels` is None for a module without parameters that does not say. weight, bias: [C] float64.
    """

    module: nn.Module
    kind: Kind
    channels: int | None
    weight: np.ndarray
    bias: np.ndarray
    epsilon: float
    gate: Gate | None = None

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The norm without its gate, by the definition, in float32 or wider."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.mean(-1, keepdim=True) if self.kind == "layer" else wide
        weight, bias = (torch.from_numpy(array).to(wide) for array in (self.weight, self.bias))
        return weight * centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.epsilon) + bias


@dataclasses.dataclass(frozen=True)
class NotANorm:
    """Why a module that is called a norm cannot be replaced."""

    reason: str


class Gated(nn.Module):
    """A gated norm's replacement: norm(x * silu(gate)) or norm(x) * silu(gate), in float32, of the type of x."""

    def __init__(self, norm: ElementwiseNorm, gate: Gate) -> None:
        super().__init__()
        self.norm = norm
        self.gate = gate

    @property
    def weight(self) -> nn.Parameter:
        """The norm's weight: models look at its type."""
        return self.norm.weight

    def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        """y of the shape and type of hidden_states; without a gate the norm alone."""
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        factor = torch.ones((), device=wide.device) if gate is None else functional.silu(gate.to(wide.dtype))
        y = self.norm(wide * factor) if self.gate == "before" else self.norm(wide) * factor
        return y.to(hidden_states.dtype)


def recognise(module: nn.Module) -> Norm | NotANorm | None:
    """What the module is; None for one that is no norm and is not called one."""
    if isinstance(module, ElementwiseNorm | Gated):
        return None
    called_norm = "norm" in type(module).__name__.lower()
    if called_norm and any(tensor.is_meta for tensor in own_tensors(module).values()):
        return NotANorm("its parameters are on the meta device, where nothing can be computed")
    if called_norm and is_made_anew(module):
        return NotANorm(
            "its weight is made of others before each call (parametrize, weight_norm, prune): make it a plain parameter"
        )
    if is_made_anew(module):
        return None
    if not _may_be_norm(module):
        reason = "it is no norm over the last axis with vectors for parameters"
        return NotANorm(reason) if called_norm and not list(module.children()) else None
    channels = _channels(module)
    probe = in_double(module)
    found = _plain(probe, channels or _UNKNOWN_CHANNELS)
    if isinstance(found, NotANorm) or (found is None and _takes(module) < 2):
        return found or (NotANorm("it does not compute a norm over its last axis") if called_norm else None)
    gate: Gate | None = None
    if _takes(module) > 1:
        gated = _gated(probe, channels or _UNKNOWN_CHANNELS)
        if gated is None:
            return NotANorm("it takes more than x, and that is no gate") if found is not None or called_norm else None
        found, gate = gated
    assert found is not None
    return Norm(module, found.kind, channels, found.weight, found.bias, _epsilon(probe, found, gate), gate)


@dataclasses.dataclass(frozen=True)
class _Line:
    kind: Kind
    weight: np.ndarray
    bias: np.ndarray


def _may_be_norm(module: nn.Module) -> bool:
    """Whether it is worth a probe: no children with parameters, at most a few vectors of one length."""
    tensors = own_tensors(module).values()
    sizes = {tensor.numel() for tensor in tensors}
    return (
        len(tensors) <= _MOST_TENSORS
        and all(tensor.ndim == 1 and not tensor.is_meta for tensor in tensors)
        and len(sizes) <= 1
        and 1 not in sizes
        and not any(own_tensors(child) for child in module.modules() if child is not module)
    )


def _channels(module: nn.Module) -> int | None:
    for tensor in own_tensors(module).values():
        return tensor.numel()
    for name in _CHANNEL_ATTRIBUTES:
        value = getattr(module, name, None)
        if isinstance(value, tuple | list) and len(value) == 1:
            value = value[0]
        if isinstance(value, int) and value > 1:
            return value
    return None


def _takes(module: nn.Module) -> int:
    """How many arguments its forward names."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _probe(channels: int, scale: float, seed: int) -> np.ndarray:
    """Random [2, 8, C], with a mean of its own for each token, so that the two kinds of norm differ."""
    rng = np.random.default_rng(seed)
    return scale * (rng.standard_normal((2, 8, channels)) + rng.standard_normal((2, 8, 1)))


def _normalised(x: np.ndarray, kind: Kind) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    return centred / np.sqrt(np.mean(centred**2, -1, keepdims=True))


def _plain(module: nn.Module, channels: int) -> _Line | NotANorm | None:
    x, larger = _probe(channels, _LARGE, 1), _probe(channels, _LARGER, 2)
    y, at_larger = run_probe(module, x), run_probe(module, larger)
    if y is None or at_larger is None:
        return None
    return _line([(x, y), (larger, at_larger)])


def _gated(module: nn.Module, channels: int) -> tuple[_Line, Gate] | None:
    x, larger, gate = _probe(channels, _LARGE, 1), _probe(channels, _LARGER, 2), _probe(channels, 1.0, 3)
    factor = gate / (1 + np.exp(-gate))
    y, at_larger = run_probe(module, x, gate), run_probe(module, larger, gate)
    if y is None or at_larger is None:
        return None
    before = _line([(x * factor, y), (larger * factor, at_larger)])
    if isinstance(before, _Line):
        return before, "before"
    after = _line([(x, y / factor), (larger, at_larger / factor)])
    return (after, "after") if isinstance(after, _Line) else None


def _line(pairs: list[tuple[np.ndarray, np.ndarray]]) -> _Line | NotANorm | None:
    """The kind, weight and bias that turn each x into its y, if there are any: fitted on one, held against all."""
    (x, y), scale = pairs[0], max(float(np.linalg.norm(y)) for _, y in pairs)
    if not all(np.isfinite(y).all() for _, y in pairs):
        return None
    if scale == 0:
        return NotANorm("its output is all zero, so that its kind cannot be told")
    kinds: tuple[Kind, Kind] = ("rms", "layer")
    for kind in kinds:
        n, target = (array.reshape(-1, array.shape[-1]) for array in (_normalised(x, kind), y))
        n_mean, target_mean = n.mean(0), target.mean(0)
        weight = ((n - n_mean) * (target - target_mean)).sum(0) / np.square(n - n_mean).sum(0)
        line = _Line(kind, weight, target_mean - weight * n_mean)
        errors = [np.linalg.norm(weight * _normalised(a, kind) + line.bias - b) for a, b in pairs]
        if max(errors) <= _SAME * scale:
            if np.abs(weight).max() <= _SAME * np.abs(line.bias).max():
                return NotANorm("its weight is all zero, so that its kind cannot be told")
            return line
    return None


def _epsilon(module: nn.Module, line: _Line, gate: Gate | None) -> float:
    """What is added to the mean square, from the slope at inputs so small that it matters."""
    x = _probe(len(line.weight), _SMALL, 4)
    ones = np.full_like(x, 1.2784645427610738)  # silu of this is 1
    y = run_probe(module, x) if gate is None else run_probe(module, x, ones)
    if y is None:
        return 0.0
    centred = x - x.mean(-1, keepdims=True) if line.kind == "layer" else x
    straight = line.weight * centred
    slope = (straight * (y - line.bias)).sum(-1) / np.square(straight).sum(-1)
    return float(max(np.median(slope**-2.0 - np.mean(centred**2, -1)), 0.0))

"""Norms recognised by what they compute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dynorm_onnx.pytorch import DyT
from dynorm_onnx.pytorch.norms import Gated, Norm, NotANorm, recognise
from tests.tolerances import relative_error

C = 12


class Scaled(nn.Module):
    """An RMSNorm as users write it; `offset` is added to the weight (Gemma's 1), `inner` casts (Llama's float32)."""

    def __init__(self, offset: float = 0.0, eps: float = 1e-6, inner: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(C))
        self.offset, self.eps, self.inner = offset, eps, inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float() if self.inner else x
        n = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return ((self.offset + self.weight) * n).to(x.dtype)


class Length(nn.Module):
    """x / ||x||, without parameters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.normalize(x, dim=-1)


class WithGate(nn.Module):
    def __init__(self, before: bool, optional: bool = True) -> None:
        super().__init__()
        self.norm_weight = nn.Parameter(torch.randn(C))
        self.before, self.optional = before, optional

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        if gate is None and not self.optional:
            raise TypeError("the gate is missing")
        factor = 1.0 if gate is None else functional.silu(gate)
        if self.before:
            x = x * factor
        y = self.norm_weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        return y if self.before else y * factor


class WithResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(C))

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x + residual, (C,), self.weight)


class ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Grouped(nn.Module):
    """RMSNorm over halves of the last axis, as in Zamba2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halves = x.unflatten(-1, (2, C // 2))
        return self.weight * functional.rms_norm(halves, (C // 2,)).flatten(-2)


class GroupedRMSNorm(Grouped):
    pass


def random_layer_norm(**options: bool) -> nn.LayerNorm:
    norm = nn.LayerNorm(C, **options)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


NORMS: dict[str, tuple[Callable[[], nn.Module], str, float]] = {
    "nn.LayerNorm": (random_layer_norm, "layer", 1e-5),
    "nn.LayerNorm without bias": (lambda: random_layer_norm(bias=False), "layer", 1e-5),
    "nn.LayerNorm without weight": (lambda: nn.LayerNorm(C, elementwise_affine=False), "layer", 1e-5),
    "nn.RMSNorm": (lambda: nn.RMSNorm(C, eps=1e-3), "rms", 1e-3),
    "an own class": (Scaled, "rms", 1e-6),
    "1 + w": (lambda: Scaled(offset=1.0), "rms", 1e-6),
    "float32 inside": (lambda: Scaled(inner=True, eps=1e-5), "rms", 1e-5),
    "no parameters": (Length, "rms", 0.0),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_is_recognised(name: str, dtype: torch.dtype) -> None:
    make, kind, epsilon = NORMS[name]
    module = make().to(dtype)
    before = [p.clone() for p in module.parameters()]
    found = recognise(module)
    assert isinstance(found, Norm)
    assert (found.kind, found.gate) == (kind, None)
    assert found.channels == (None if name == "no parameters" else C)
    assert found.epsilon == pytest.approx(epsilon, rel=0.01, abs=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    if found.channels:
        x = torch.randn(3, 4, C) + 0.5
        assert relative_error(found.of(x).numpy(), module.float()(x).detach().numpy()) < 1e-5


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("optional", [True, False])
def test_gated_norms(before: bool, optional: bool) -> None:
    module = WithGate(before, optional)
    found = recognise(module)
    assert isinstance(found, Norm)
    assert (found.kind, found.gate) == ("rms", "before" if before else "after")
    np.testing.assert_allclose(found.weight, module.norm_weight.detach(), rtol=1e-5)


@pytest.mark.parametrize("gate", ["before", "after"])
def test_the_replacement_of_a_gated_norm(gate: str) -> None:
    inner = DyT(C, alpha=0.7)
    x, g = torch.randn(3, C), torch.randn(3, C)
    factor = functional.silu(g)
    expected = inner(x * factor) if gate == "before" else inner(x) * factor
    torch.testing.assert_close(Gated(inner, gate)(x, g), expected)  # type: ignore[arg-type]
    torch.testing.assert_close(Gated(inner, gate)(x), inner(x))  # type: ignore[arg-type]


NO_NORMS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "GELU": (nn.GELU, None),
    "Linear": (lambda: nn.Linear(C, C), None),
    "Softmax": (lambda: nn.Softmax(-1), None),
    "Embedding": (lambda: nn.Embedding(4, C), None),
    "Identity": (nn.Identity, None),
    "ours": (lambda: DyT(C), None),
    "a class that is not called norm": (Grouped, None),
    "GroupNorm": (lambda: nn.GroupNorm(2, C), "does not compute a norm over its last axis"),
    "BatchNorm": (lambda: nn.BatchNorm1d(C), "no norm over the last axis"),
    "two axes": (lambda: nn.LayerNorm((4, C)), "no norm over the last axis"),
    "channels first": (lambda: ChannelsFirstNorm(C), "does not compute a norm over its last axis"),
    "groups": (GroupedRMSNorm, "does not compute a norm over its last axis"),
    "zero weight": (lambda: zeroed(nn.LayerNorm(C)), "all zero"),
}


def zeroed(norm: nn.LayerNorm) -> nn.LayerNorm:
    nn.init.zeros_(norm.weight)
    return norm


@pytest.mark.parametrize("name", NO_NORMS)
def test_what_is_no_norm(name: str) -> None:
    make, reason = NO_NORMS[name]
    found = recognise(make())
    if reason is None:
        assert found is None
    else:
        assert isinstance(found, NotANorm) and reason in found.reason


def test_a_norm_without_values() -> None:
    found = recognise(nn.LayerNorm(C, device="meta"))
    assert isinstance(found, NotANorm) and "meta device" in found.reason


def test_a_norm_that_takes_more_than_x() -> None:
    assert recognise(WithResidual()) is None  # its class is not called a norm
    renamed = type("ResidualNorm", (WithResidual,), {})()
    found = recognise(renamed)
    assert isinstance(found, NotANorm) and "no gate" in found.reason

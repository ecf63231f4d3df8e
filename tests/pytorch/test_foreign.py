"""Modules of the three functions that others wrote."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dynorm_onnx.pytorch import DyISRU, DyT, as_dynorm
from dynorm_onnx.pytorch.foreign import as_dynorm_module
from tests.tolerances import TOLERANCE, relative_error

C = 10


class DynamicTanh(nn.Module):
    """As in the paper, with its switch for images."""

    def __init__(self, channels_last: bool = True) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.alpha = nn.Parameter(torch.tensor([0.7]))
        self.weight = nn.Parameter(torch.randn(C))
        self.bias = nn.Parameter(torch.randn(C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.alpha * x)
        if self.channels_last:
            return x * self.weight + self.bias
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class Erf(nn.Module):
    """Derf with other names, a scalar without an axis, and no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(C))
        self.move = nn.Parameter(torch.tensor(0.3))
        self.steep = nn.Parameter(torch.tensor(0.8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * torch.erf(self.steep * x + self.move)


class InverseRoot(nn.Module):
    """DyISRU with beta = exp(b) per channel and 1 + w."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(C))
        self.b = nn.Parameter(torch.randn(C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1 + self.w) * x * torch.rsqrt(self.b.exp() + x * x)


class Softplus(InverseRoot):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w * x / (nn.functional.softplus(self.b) + x.square()).sqrt()


class Mixed(nn.Module):
    """No element-wise function: tanh of the sum of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.weight = nn.Parameter(torch.randn(C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * torch.tanh(self.alpha * x.sum(-1, keepdim=True))


class Sine(Mixed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * torch.sin(self.alpha * x)


@pytest.mark.parametrize(
    ("make", "op_type"), [(DynamicTanh, "DyT"), (Erf, "Derf"), (InverseRoot, "DyISRU"), (Softplus, "DyISRU")]
)
def test_recognised_by_what_they_compute(make: type[nn.Module], op_type: str) -> None:
    module = make()
    ours = as_dynorm_module(module)
    assert ours is not None and ours.function.op_type == op_type
    x = 2 * torch.randn(4, 3, C)
    assert relative_error(ours(x).detach().numpy(), module(x).detach().numpy()) < TOLERANCE["float32"]


@pytest.mark.parametrize(
    "module",
    [Mixed(), Sine(), DynamicTanh(channels_last=False), nn.LayerNorm(C), nn.PReLU(C), nn.Linear(C, C), nn.Tanh()],
    ids=lambda module: type(module).__name__,
)
def test_others_are_left(module: nn.Module) -> None:
    assert as_dynorm_module(module) is None


def test_untrained_ones_keep_their_shapes() -> None:
    module = DynamicTanh()
    nn.init.ones_(module.alpha)
    nn.init.ones_(module.weight)
    nn.init.zeros_(module.bias)
    for parameters in (["alpha", "weight", "bias"], ["bias", "weight", "alpha"]):
        module._parameters = {name: module._parameters[name] for name in parameters}
        ours = as_dynorm_module(module)
        assert isinstance(ours, DyT) and ours.alpha.shape == (1,)
    nn.init.zeros_(module.weight)
    assert as_dynorm_module(module) is None


def test_in_place_in_a_model() -> None:
    shared = DynamicTanh().half()
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.Linear(C, C), Erf(), shared), "ours": DyISRU(C)}).eval()
    ours = model["ours"]
    assert as_dynorm(model) == ["a", "b.1"]
    assert isinstance(model["a"], DyT) and model["a"] is model["b"][2]
    assert model["a"].weight.dtype == torch.float16 and model["a"].alpha.dtype == torch.float32
    assert not model["a"].training and model["ours"] is ours
    np.testing.assert_array_equal(model["a"].weight.detach(), shared.weight.detach())


def test_mappings_for_what_a_probe_cannot_tell() -> None:
    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = DynamicTanh()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    def convert(module: nn.Module) -> DyT:
        assert isinstance(module, Double)
        ours = DyT(C, alpha=0.25)
        ours.weight.data.copy_(module.inner.weight.data)
        return ours

    model = nn.Sequential(Double(), nn.Linear(C, C))
    assert as_dynorm(model, {Double: convert}) == ["0"]
    assert isinstance(model[0], DyT) and model[0].alpha.item() == 0.25

"""Norms of PyTorch models, told by what they compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")
pytest.importorskip("transformers", reason="needs transformers: pip install transformers")

from models.zoo.norms import running_norms  # noqa: E402
from models.zoo.subject import tiny  # noqa: E402

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
# Counted by hand: a layer's norms times two layers, and the last one; queries and keys; two stacks.
COUNTS = {
    "llama": 2 * 2 + 1,
    "qwen3": 2 * (2 + 2) + 1,
    "gemma3": 2 * (4 + 2) + 1,
    "olmo2": 2 * (2 + 2) + 1,
    "gpt-oss": 2 * 2 + 1,
    "t5": 2 * 2 + 1 + 2 * 3 + 1,
    "bert": 1 + 2 * 2 + 1,  # behind the embedding, and in the head
    "vit": 2 * 2 + 1,
    "whisper": 2 * 2 + 1 + 2 * 3 + 1,
    "mamba2": 2 * (1 + 1) + 1,
    "qwen3-next": 2 * 2 + 1 + 2 + 1,
}


class Gated(torch.nn.Module):
    """An RMSNorm with a gate in front of it (Mamba 2) or behind it (Qwen3-Next)."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(16) + 0.5)
        self.before = before

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        gate = torch.nn.functional.silu(gate)
        y = x * gate if self.before else x
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5) * self.weight
        return y if self.before else y * gate


class Holder(torch.nn.Module):
    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x, gate=x + 1)


class Lambda(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.function(*args)


@pytest.mark.parametrize(
    "norm",
    [
        torch.nn.RMSNorm(16, eps=1e-5),
        torch.nn.LayerNorm(16),
        torch.nn.LayerNorm(16, elementwise_affine=False),
        Lambda(lambda x: 1.7 * x / x.square().mean(-1, keepdim=True).add(1e-6).sqrt() + 0.3),
    ],
)
def test_a_norm_is_counted_as_often_as_it_runs(norm: torch.nn.Module) -> None:
    twice = torch.nn.Sequential(norm, torch.nn.Linear(16, 16), norm)
    assert running_norms(twice, (X,)) == [norm, norm]


@pytest.mark.parametrize("before", [True, False])
def test_a_gated_norm(before: bool) -> None:
    norm = Gated(before)
    assert running_norms(Holder(norm), (X,)) == [norm]


@pytest.mark.parametrize(
    "other",
    [
        torch.nn.Linear(16, 16),
        torch.nn.Identity(),
        torch.nn.Softmax(-1),
        torch.nn.Tanh(),
        torch.nn.GroupNorm(5, 5),
        torch.nn.Bilinear(16, 16, 16),
        Lambda(lambda x: x / x.square().mean(-2, keepdim=True).sqrt()),
        Lambda(lambda x: torch.zeros_like(x)),
        Lambda(lambda x: x.argmax(-1)),
    ],
)
def test_what_is_no_norm(other: torch.nn.Module) -> None:
    args = (X, X) if isinstance(other, torch.nn.Bilinear) else (X,)
    assert running_norms(other, args) == []


@pytest.mark.parametrize("name", COUNTS)
def test_norms_of_real_architectures(name: str) -> None:
    subject = tiny(name)
    norms = running_norms(subject.module, subject.example)
    assert len(norms) == COUNTS[name]
    for parameter in (parameter for norm in norms for parameter in norm.parameters()):
        assert parameter.std() > 0.1  # neither ones nor zeros

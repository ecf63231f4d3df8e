"""What a replaced norm had beside its function, its replacement has: hooks, what is frozen, mode."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from dynorm_onnx.pytorch import DyT, as_dynorm, export, replace_norms
from tests.builders.execute import run_model
from tests.tolerances import relative_error

C = 8
X = 2 * torch.randn(4, 5, C, generator=torch.Generator().manual_seed(0)) + 0.3


class OwnNorm(nn.Module):
    """An RMSNorm with other names, and a hook that is a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, C))
        self.beta = nn.Parameter(torch.linspace(-1, 1, C))
        self.register_load_state_dict_pre_hook(self.migrate)

    def migrate(self, *_: Any) -> None:
        raise AssertionError("the module is gone")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.gamma + self.beta


class ForeignTanh(nn.Module):
    """DyT, as others write it."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([0.7]))
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, C))
        self.bias = nn.Parameter(torch.linspace(-1, 1, C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.alpha * x) * self.weight + self.bias


NORMS: dict[str, Callable[[], nn.Module]] = {"LayerNorm": lambda: nn.LayerNorm(C), "own": OwnNorm}


def model(make: Callable[[], nn.Module] = NORMS["LayerNorm"]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(C, C), make(), nn.Linear(C, C))


def replaced(net: nn.Module, fitted: bool) -> nn.Module:
    """The same model; the second way is that of modules that others wrote."""
    replace_norms(net, "dyt", [X] if fitted else None)
    return net


@pytest.mark.parametrize("fitted", [True, False], ids=["fitted", "from scratch"])
@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (0, 1)], ids=str)
def test_what_is_frozen_stays_frozen(frozen: tuple[int, ...], make: Callable[[], nn.Module], fitted: bool) -> None:
    net = model(make)
    for place in frozen:
        [*net[1].parameters()][place].requires_grad_(False)
    replaced(net, fitted)
    expected = {"weight": 0 not in frozen, "bias": 1 not in frozen, "alpha": len(frozen) < 2}
    assert {name: p.requires_grad for name, p in net[1].named_parameters()} == expected


@pytest.mark.parametrize(("rest_trains", "trains"), [(True, True), (False, False)])
def test_a_norm_without_parameters_is_as_frozen_as_the_model(rest_trains: bool, trains: bool) -> None:
    net = model(lambda: nn.LayerNorm(C, elementwise_affine=False)).requires_grad_(rest_trains)
    replaced(net, fitted=True)
    assert {p.requires_grad for p in net[1].parameters()} == {trains}
    alone = nn.Sequential(nn.LayerNorm(C, elementwise_affine=False))
    assert all(p.requires_grad for p in replaced(alone, fitted=False).parameters())


def test_a_frozen_bias_where_the_norm_has_none() -> None:
    net = model(lambda: nn.RMSNorm(C))
    net[1].weight.requires_grad_(False)
    assert not any(p.requires_grad for p in replaced(net, fitted=True)[1].parameters())


class Called(collections.Counter):
    """Counts calls of hooks by kind."""

    def hook(self, kind: str, answer: Any = None) -> Callable[..., Any]:
        def called(*_: Any, **__: Any) -> Any:
            self[kind] += 1
            return answer

        return called


def with_every_hook(norm: nn.Module, called: Called) -> list[Any]:
    return [
        norm.register_forward_pre_hook(called.hook("pre")),
        norm.register_forward_pre_hook(called.hook("pre with kwargs"), with_kwargs=True),
        norm.register_forward_hook(called.hook("after")),
        norm.register_forward_hook(called.hook("after with kwargs"), with_kwargs=True),
        norm.register_forward_hook(called.hook("always"), always_call=True),
        norm.register_full_backward_pre_hook(called.hook("before backward")),
        norm.register_full_backward_hook(called.hook("backward")),
        norm.register_state_dict_pre_hook(called.hook("before state")),
        norm.register_state_dict_post_hook(called.hook("state")),
        norm.register_load_state_dict_pre_hook(called.hook("before load")),
        norm.register_load_state_dict_post_hook(called.hook("load")),
    ]


@pytest.mark.parametrize("fitted", [True, False], ids=["fitted", "from scratch"])
@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_hooks_of_every_kind_stay_and_can_be_removed(make: Callable[[], nn.Module], fitted: bool) -> None:
    net, called = model(make), Called()
    handles = with_every_hook(net[1], called)
    replaced(net, fitted)
    called.clear()
    net(X).sum().backward()
    net.load_state_dict(net.state_dict())
    if make is NORMS["LayerNorm"]:  # the other puts some of its own, which go: then torch's handles hold the old dict
        assert len(called) == len(handles) and set(called.values()) == {1}
        called.clear()
        for handle in handles:
            handle.remove()
        net(X).sum().backward()
        net.load_state_dict(net.state_dict())
        assert not called
    else:
        assert len(called) == len(handles)


def test_hooks_are_called_with_the_new_module() -> None:
    net, seen = model(), []
    net[1].register_forward_hook(lambda module, *_: seen.append(module))
    net[1].register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    replaced(net, fitted=False)
    net(X)
    net.load_state_dict(net.state_dict())
    assert seen == [net[1], net[1]] and isinstance(net[1], DyT)


@pytest.mark.parametrize("before", [False, True], ids=["output", "input"])
def test_a_hook_that_changes_values_works_on_the_replacement_once(before: bool) -> None:
    """Fitted to what the norm itself gives, on what it is given: the hook would else be in it, and come again."""
    net, plain = model(), model()
    if before:
        net[1].register_forward_pre_hook(lambda module, args: (3 * args[0],))
        for parameter in plain[0].requires_grad_(False).parameters():
            parameter.mul_(3)
    else:
        net[1].register_forward_hook(lambda module, args, output: 3 * output)
    for one in (net, plain):
        replaced(one, fitted=True)
    for found, expected in zip(net[1].parameters(), plain[1].parameters(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4)
    given = plain[1](plain[0](X))
    expected = plain[2](given if before else 3 * given)
    assert relative_error(net(X).detach().numpy(), expected.detach().numpy()) < 1e-4


def test_a_hook_that_cannot_be_copied_is_no_hindrance() -> None:
    net = model()
    with Path(__file__).open() as file:
        net[1].register_forward_hook(functools.partial(lambda file, *_: None, file))
        assert replace_norms(net, "dyt", [X]).converted == ("1",)
        assert len(net[1]._forward_hooks) == 1


def test_modules_that_others_wrote_keep_theirs() -> None:
    net, called = model(ForeignTanh), Called()
    net[1].bias.requires_grad_(False)
    net[1].eval().register_forward_hook(called.hook("after"))
    assert as_dynorm(net) == ["1"] and isinstance(net[1], DyT)
    net(X)
    assert called["after"] == 1 and not net[1].training
    assert {name: p.requires_grad for name, p in net[1].named_parameters()} == {
        "weight": True, "bias": False, "alpha": True
    }  # fmt: skip


@pytest.mark.parametrize("foreign", [False, True], ids=["ours", "foreign"])
def test_a_hook_that_changes_the_output_is_in_the_exported_file(foreign: bool, tmp_path: Path) -> None:
    net = model(ForeignTanh if foreign else lambda: DyT(C, alpha=0.7)).eval()
    net[1].register_forward_hook(lambda module, args, output: 3 * output)
    written = export(net, X, tmp_path / "model.onnx")
    assert [node.op_type for node in written.graph].count("DyT") == 1
    (found,) = run_model(ir.to_proto(written), {str(written.graph.inputs[0].name): X.numpy()})
    assert relative_error(found, net(X).detach().numpy()) < 1e-5
    assert len(net[1]._forward_hooks) == 1


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


@pytest.mark.parametrize("make_anew", [
    lambda norm: parametrize.register_parametrization(norm, "weight", Doubled()),
    lambda norm: prune.random_unstructured(norm, "weight", 0.5),
    lambda norm: prune.l1_unstructured(norm.requires_grad_(False), "bias", 0.5),
], ids=["parametrize", "prune", "prune, frozen"])  # fmt: skip
def test_a_norm_whose_weight_is_made_of_others_is_refused(make_anew: Callable[[nn.Module], Any]) -> None:
    net = nn.Sequential(model(), nn.RMSNorm(C))
    make_anew(net[0][1])
    report = replace_norms(net, "dyt", [X])
    assert [(row.name, row.status) for row in report.norms] == [("0.1", "refused"), ("1", "converted")]
    assert "made of others before each call" in str(report.norms[0].reason)


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_norms_of_weights_are_none_of_activations(norm: Callable[[nn.Module], nn.Module]) -> None:
    net = model()
    norm(net[0])
    assert [row.name for row in replace_norms(net, "dyt", [X]).norms] == ["1"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_and_modes_stay(dtype: torch.dtype) -> None:
    net = model().to(dtype)
    net[1].eval()
    replaced(net, fitted=False)
    assert net.training and not net[1].training
    assert net[1].weight.dtype == net[1].bias.dtype == dtype
    assert np.isfinite(net(X.to(dtype)).detach().float().numpy()).all()

"""DyT, DyISRU and Derf as modules: their values, gradients, types and state."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynorm_onnx.errors import UsageError
from dynorm_onnx.functions import Coupling, NormParameters
from dynorm_onnx.pytorch import Derf, DyISRU, DyT
from dynorm_onnx.pytorch.nn import MODULES, ElementwiseNorm
from tests.tolerances import TOLERANCE, relative_error

TYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "double": torch.float64,
}


def random_module(name: str, channels: int, *, per_channel: bool, seed: int = 0, coupled: int = 0) -> ElementwiseNorm:
    """A module whose parameters are all different from their initial values."""
    rng = np.random.default_rng(seed)
    cls = MODULES[name]
    size = channels if per_channel else 1
    scalars = {parameter: rng.uniform(0.3, 2.0, size) for parameter in cls.function.parameter_names}
    weight, bias = rng.normal(size=channels), rng.normal(size=channels)
    coupling = Coupling(rng.permutation(channels)[:coupled], rng.uniform(0.01, 0.5, coupled)) if coupled else None
    return cls.from_parameters(NormParameters(weight, bias, scalars, coupling))


def reference(module: ElementwiseNorm, x: torch.Tensor) -> np.ndarray:
    """The function in float64, of the parameters and inputs as they were rounded."""
    return module.function(x.detach().double().numpy(), module.to_parameters())


@pytest.mark.parametrize("name", MODULES)
@given(
    dtype=st.sampled_from(sorted(TYPES)),
    channels=st.integers(1, 20),
    scale=st.floats(1e-3, 1e3),
    per_channel=st.booleans(),
    coupled=st.integers(0, 3),
)
def test_agrees_with_the_definition(
    name: str, dtype: str, channels: int, scale: float, per_channel: bool, coupled: int
) -> None:
    module = random_module(name, channels, per_channel=per_channel, coupled=min(coupled, channels)).to(TYPES[dtype])
    x = (scale * torch.randn(3, 5, channels, generator=torch.Generator().manual_seed(1))).to(TYPES[dtype])
    y = module(x)
    assert y.dtype == x.dtype
    assert relative_error(y.detach().double().numpy(), reference(module, x)) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("coupled", [0, 2])
def test_input_of_another_type_than_the_weights(name: str, coupled: int) -> None:
    module = random_module(name, 8, per_channel=True, coupled=coupled)
    x = torch.randn(3, 8).bfloat16()
    y = module(x)
    assert y.dtype == torch.bfloat16
    assert relative_error(y.detach().double().numpy(), reference(module, x)) < TOLERANCE["bfloat16"]


def test_dyisru_does_not_overflow() -> None:
    module = DyISRU(4, weight=2.0, beta=3.0)
    x = torch.tensor([3e38, -1e25, 5e-30, 1.0])
    np.testing.assert_allclose(module(x).detach(), reference(module, x), rtol=1e-6)
    half = module.half()
    np.testing.assert_allclose(half(torch.full((4,), 65504.0).half()).detach(), np.full(4, 2.0), rtol=1e-3)


def test_dyisru_is_rmsnorm_where_the_other_channels_are_known() -> None:
    x = torch.randn(6, 16, dtype=torch.float64)
    squares = x.square()
    gamma = np.linspace(0.5, 2.0, 16)
    token = 2
    beta = (squares[token].sum() - squares[token]).numpy()
    module = DyISRU.from_parameters(NormParameters(4.0 * gamma, np.zeros(16), {"beta": beta}), dtype=torch.float64)
    norm = torch.nn.functional.rms_norm(x[token], (16,), torch.from_numpy(gamma), eps=0.0)
    assert relative_error(module(x[token]).detach().numpy(), norm.numpy()) < 1e-6  # beta is stored in float32


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("coupled", [0, 2])
def test_gradients(name: str, per_channel: bool, coupled: int) -> None:
    """Of x, weight and bias by finite differences; of the float32 parameters against those of a wide copy."""
    module = random_module(name, 5, per_channel=per_channel, coupled=coupled).double()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    wide = {key: value.detach().double().requires_grad_() for key, value in module.named_parameters()}
    assert len(wide) == 2 + len(module.stored) + (coupled > 0)

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, dict(zip(wide, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *wide.values()))
    narrow = [*module.stored, *(["log_coupling"] if coupled else [])]
    expected = torch.autograd.grad(run(x, *wide.values()).square().sum(), [wide[key] for key in narrow])
    module(x).square().sum().backward()
    for key, gradient in zip(narrow, expected, strict=True):
        np.testing.assert_allclose(getattr(module, key).grad, gradient, rtol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_casting_leaves_the_steepness_in_float32(name: str) -> None:
    module = random_module(name, 6, per_channel=True, coupled=3)
    before, coupling = module.to_parameters().scalars, module.to_parameters().coupling
    for cast in (module.half(), copy.deepcopy(module).bfloat16(), copy.deepcopy(module).double()):
        assert all(getattr(cast, stored).dtype == torch.float32 for stored in (*cast.stored, "log_coupling"))
        again = cast.to_parameters().coupling
        assert again is not None and coupling is not None
        np.testing.assert_array_equal(again.channels, coupling.channels)
        np.testing.assert_array_equal(again.strengths, coupling.strengths)
        assert cast.weight.dtype == cast.bias.dtype != torch.float32
        for parameter, value in cast.to_parameters().scalars.items():
            np.testing.assert_array_equal(value, before[parameter])
    moved = MODULES[name](6, coupling=coupling, device="meta").to_empty(device="cpu")  # type: ignore[call-arg]
    moved.reset_parameters()
    found = moved.to_parameters().coupling
    assert found is not None and coupling is not None and found.channels.tolist() == coupling.channels.tolist()
    assert moved.to_parameters().scalars.keys() == before.keys()
    assert moved(torch.randn(2, 6)).isfinite().all()


def test_a_cast_keeps_gradients_and_the_optimizer_valid() -> None:
    module = DyISRU(6)
    module(torch.randn(2, 6)).sum().backward()
    stored = module.log_beta
    module.half()
    assert module.log_beta is stored
    assert module.log_beta.grad is not None and module.log_beta.grad.dtype == torch.float32


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("coupled", [0, 2])
def test_state_round_trips(name: str, per_channel: bool, coupled: int) -> None:
    module = random_module(name, 6, per_channel=per_channel, coupled=coupled)
    other = MODULES[name](6, per_channel=per_channel)  # type: ignore[call-arg]
    other.load_state_dict(module.state_dict())
    x = torch.randn(4, 6)
    assert torch.equal(other(x), module(x))
    more = {"coupled_channels", "log_coupling"} if coupled else set()
    assert set(module.state_dict()) == {"weight", "bias", *module.stored} | more
    assert ("2 coupled" in repr(other)) == bool(coupled)


@pytest.mark.parametrize("name", MODULES)
def test_parameters_go_both_ways(name: str) -> None:
    parameters = random_module(name, 6, per_channel=True, seed=3, coupled=2).to_parameters()
    again = MODULES[name].from_parameters(parameters).to_parameters()
    assert again.coupling is not None and parameters.coupling is not None
    np.testing.assert_array_equal(again.coupling.channels, parameters.coupling.channels)
    np.testing.assert_allclose(again.coupling.strengths, parameters.coupling.strengths, rtol=1e-6)
    np.testing.assert_array_equal(again.weight, parameters.weight)
    for parameter, value in again.scalars.items():
        np.testing.assert_allclose(value, parameters.scalars[parameter], rtol=1e-6)


def test_beta_stays_positive_in_training() -> None:
    module = DyISRU(4, beta=0.01)
    optimizer = torch.optim.SGD(module.parameters(), lr=50.0)
    for _ in range(20):
        optimizer.zero_grad()
        module(torch.randn(8, 4, generator=torch.Generator().manual_seed(0))).abs().sum().neg().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.05)
        optimizer.step()
    assert module.scalars()["beta"].item() > 0 and module.scalars()["beta"].isfinite().all()


def test_a_strength_of_zero_is_none_and_stays_none_in_training() -> None:
    """Small ones move by a share of themselves, and none goes below zero."""
    module = DyT(6, coupling=Coupling(np.array([4, 1, 2]), np.array([0.0, 1e-9, 0.5])))
    plain = DyT(6, coupling=Coupling(np.array([1, 2]), np.array([1e-9, 0.5])))
    x = 3 * torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(x), plain(x))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.5)
    for _ in range(40):
        optimizer.zero_grad()
        module(x).square().sum().neg().backward()
        optimizer.step()
    strengths = module.to_parameters().coupling.strengths  # type: ignore[union-attr]
    assert strengths[0] == 0 and np.all(strengths[1:] > 0) and np.all(strengths[1:] < [1e-9, 0.5])
    assert module(x).isfinite().all()


def test_a_massive_coupled_channel_mutes_the_others_and_autocast_does_not_round_it() -> None:
    module = DyISRU(4, beta=3.0, coupling=Coupling(np.array([2, 0]), np.array([0.3, 0.01])))
    x = torch.tensor([[1.0, 1.0, 3e38, 1.0], [1.0, 1.0, 1e4, 1.0], [1.0, 2.0, 3.0, 4.0]])
    y = module(x)
    assert y.isfinite().all() and y[:2, [0, 1, 3]].abs().max() < 1e-3
    np.testing.assert_allclose(y.detach(), reference(module, x), rtol=1e-5, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), y)


@pytest.mark.parametrize(
    ("channels", "strengths", "message"),
    [([0, 4], [1.0, 1.0], r"\[0, 4\] are not each one of 4"), ([1, 1], [1.0, 1.0], "once"),
     ([0, 1], [1.0, -1.0], r"-1\.0\] are not all numbers from 0 on"), ([0], [1.0, 1.0], "not of k each")],
)  # fmt: skip
def test_couplings_that_make_no_sense_are_named(channels: list[int], strengths: list[float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DyT(4, coupling=Coupling(np.array(channels), np.array(strengths)))


def test_channels_are_coupled_and_let_go() -> None:
    module, x = DyT(4), torch.randn(3, 4)
    plain = module(x)
    module.couple(Coupling(np.array([3]), np.array([0.5])))
    assert not torch.equal(module(x), plain)
    with pytest.raises(UsageError, match="DyT couples 1 channels, the parameters to load couple 0"):
        module.load_parameters(DyT(4).to_parameters())
    module.couple(None)
    assert torch.equal(module(x), plain) and "coupled" not in repr(module) and len(module.state_dict()) == 3


def test_initial_values() -> None:
    assert DyT(8).alpha.tolist() == [0.5]
    assert (Derf(8).alpha.item(), Derf(8).shift.item()) == (0.5, 0.0)
    module = DyISRU(16)
    assert module.scalars()["beta"].item() == pytest.approx(16.0)
    x = torch.full((1, 16), 1e-3, requires_grad=True)
    module(x).sum().backward()
    np.testing.assert_allclose(x.grad, np.ones((1, 16)), rtol=1e-5)  # the slope 1 of a norm of unit variance


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("coupled", [0, 2])
def test_compiles_whole(name: str, coupled: int) -> None:
    module = random_module(name, 8, per_channel=True, coupled=coupled)
    x = torch.randn(4, 8)
    compiled = torch.compile(module, fullgraph=True)(x)
    assert relative_error(compiled.detach().numpy(), module(x).detach().numpy()) < TOLERANCE["float32"]


def test_without_torch_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None\nimport dynorm_onnx.pytorch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UsageError" in done.stderr and "pip install dynorm-onnx[torch]" in done.stderr

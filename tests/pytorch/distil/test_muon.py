"""Muon: what it makes of a matrix, and how far its steps go."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")

from torch import nn  # noqa: E402

from dynorm_onnx.pytorch.distil.muon import RELATIVE_STEP, Muon, orthogonal  # noqa: E402


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40), (2, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_become_about_one_and_their_vectors_stay(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(0, -1.5, len(s))
    made = orthogonal(1e3 * u @ torch.diag(values) @ v, dtype).float()
    assert made.shape == shape
    inside = u.T @ made @ v.T  # diagonal, were it exact
    assert float(inside.diagonal().min()) > 0.6 and float(inside.diagonal().max()) < 1.3
    beside = inside - torch.diag(inside.diagonal())
    assert float(beside.norm() / inside.norm()) < (1e-3 if dtype == torch.float32 else 0.1)


def test_zeros_give_zeros() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_steps_have_the_size_of_the_rate_whatever_the_gradient_is() -> None:
    torch.manual_seed(1)
    for scale in (1e-4, 1e4):
        parameter = nn.Parameter(torch.zeros(32, 32))
        optimizer = Muon([parameter], lr=0.5)
        parameter.grad = scale * torch.randn(32, 32)
        optimizer.step()
        size = float(parameter.detach().square().mean().sqrt())
        assert 0.6 < size / (0.5 * RELATIVE_STEP) < 1.3
        assert float((parameter.detach() * parameter.grad).sum()) < 0, "downhill"


def test_it_finds_a_matrix_and_goes_on_from_its_state() -> None:
    torch.manual_seed(2)
    target, x = torch.randn(12, 8), torch.randn(64, 8)

    def descend(parameter: nn.Parameter, optimizer: Muon, steps: range) -> float:
        loss = torch.zeros(())
        for step in steps:
            optimizer.param_groups[0]["lr"] = 0.5 * (1 - step / 200)
            loss = (x @ (parameter - target).T).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    whole, parted = nn.Parameter(torch.zeros(12, 8)), nn.Parameter(torch.zeros(12, 8))
    assert descend(whole, Muon([whole]), range(200)) < 1e-3
    first, second = Muon([parted]), Muon([parted])
    descend(parted, first, range(90))
    second.load_state_dict(first.state_dict())
    descend(parted, second, range(90, 200))
    assert torch.equal(whole, parted)

"""Coupled channels that leave the sum while a model is trained: what stays exact, and in which order they go."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from dynorm_onnx.errors import UsageError
from dynorm_onnx.functions import REGISTRY, Coupling, NormParameters
from tests.pytorch.graph.test_module import model_of
from tests.tolerances import relative_error

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")

from torch import nn  # noqa: E402

from dynorm_onnx.pytorch.distil import StepProgress, distil  # noqa: E402
from dynorm_onnx.pytorch.distil import trainer as trainer_module  # noqa: E402
from dynorm_onnx.pytorch.distil.coupled import coupled_norms, let_go, observed_squares  # noqa: E402
from dynorm_onnx.pytorch.distil.fading import Fading, Plan, ordinary_means, plan, without_zeros  # noqa: E402
from dynorm_onnx.pytorch.graph import GraphModule  # noqa: E402
from dynorm_onnx.pytorch.nn import MODULES, ElementwiseNorm  # noqa: E402

C = 8
MEANS = torch.tensor([0.5, 4.0, 30.0], dtype=torch.float64)
X = 3 * torch.randn(200, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def module_of(name: str) -> ElementwiseNorm:
    rng = np.random.default_rng(1)
    function = REGISTRY[name]
    scalars = {parameter: rng.uniform(0.5, 2, C) for parameter in function.parameter_names}
    coupling = Coupling(np.array([6, 0, 3]), np.array([0.3, 0.001, 0.02]))
    return MODULES[name].from_parameters(NormParameters(rng.normal(size=C), rng.normal(size=C), scalars, coupling))


def with_constants(module: ElementwiseNorm, shares: np.ndarray) -> np.ndarray:
    """By the definition: lam x_j^2 + (1 - lam) m_j in the sum; float64."""
    parameters = module.to_parameters()
    assert parameters.coupling is not None
    x = X.numpy()
    squares = np.square(x[:, parameters.coupling.channels])
    mixed = shares * squares + (1 - shares) * MEANS.numpy()
    gain = 1 / np.sqrt(1 + mixed @ parameters.coupling.strengths)
    return module.function.reference(
        x * gain[:, None], parameters.weight, parameters.bias, **parameters.scalars
    )  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("shares", [(1.0, 1.0, 1.0), (0.5, 1.0, 0.1), (0.0, 0.3, 1.0), (0.0, 0.0, 0.0)])
def test_a_function_with_means_in_its_sum_is_one_of_other_parameters(name: str, shares: tuple[float, ...]) -> None:
    module = module_of(name)
    expected, before = with_constants(module, np.array(shares)), module(X).detach()
    (norm,) = coupled_norms(nn.Sequential(module)).values()
    norm.fade(torch.tensor(shares, dtype=torch.float64), MEANS)
    y = module(X).detach()
    assert relative_error(y.numpy(), expected) < 1e-6
    if min(shares) == 1:
        assert torch.equal(y, before), "nothing has faded"
    let_go(model := nn.Sequential(module))
    assert relative_error(model(X).detach().numpy(), y.numpy()) < 1e-12, "a channel that is gone counts for nothing"
    left = module.to_parameters().coupling
    assert (0 if left is None else len(left.channels)) == sum(share > 0 for share in shares)


@pytest.mark.parametrize("name", MODULES)
def test_fading_in_many_steps_is_fading_in_one(name: str) -> None:
    """And graphs fade as modules do."""
    one, many = module_of(name), module_of(name)
    ranges, begins, ends = torch.tensor([[1e6, 20, 100], [0.5, 0, 1], [1, 0.5, 2]], dtype=torch.float64)
    (norm,) = coupled_norms(nn.Sequential(many)).values()
    fading = Fading({"0": norm}, {"0": Plan(MEANS, ranges, begins, ends)}, steps=20)
    seen = []
    for step in range(20):
        fading.at(step)
        seen.append(many.strengths().detach().clone())  # type: ignore[union-attr]
    (other,) = coupled_norms(nn.Sequential(one)).values()
    other.fade(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), MEANS)
    assert relative_error(many(X).detach().numpy(), one(X).detach().numpy()) < 1e-5
    assert seen[3][1] > 0 and seen[4][1] == 0 and seen[4][0] > 0.1, "first the channel of the first turn, alone"
    assert seen[8][0] > 0 and seen[9][0] == 0 and seen[-1][2] > 0
    assert torch.equal(seen[9], seen[-1])


def test_the_massive_channel_goes_last_and_those_that_pull_most_stay() -> None:
    squares = torch.rand(1000, 3, dtype=torch.float64) + 1
    squares[7, 1] = 1e7
    strengths = torch.tensor([3.0, 1e-2, 1e-1])
    made = plan(squares, strengths, keep=0)
    assert torch.argsort(made.begins).tolist() == [2, 0, 1]
    assert made.ends[2] == made.begins[0] and made.ends[0] == made.begins[1] and made.ends[1] == 1
    assert made.ends[1] - made.begins[1] > 0.5, "the massive one takes most of the time"
    for keep, stay in ((2, [True, True, False]), (5, [True, True, True])):
        some = plan(squares, strengths, keep)
        assert ((some.left(1.0) == 1) == torch.tensor(stay)).all() and not some.left(1.0)[~torch.tensor(stay)].any()
    assert made.means.tolist() == pytest.approx([1.5, 1.5, 1.5], rel=0.05), "the massive token does not count"
    assert torch.equal(made.left(0.0), torch.ones(3, dtype=torch.float64)) and not made.left(1.0).any()
    begin = float(made.begins[1])
    massive = [float(made.left(begin + part * (1 - begin))[1]) * 1e7 for part in (0.0, 0.25, 0.5, 0.75)]
    factors = [after / before for before, after in itertools.pairwise(massive)]
    assert factors == pytest.approx(factors[:1] * 3, rel=0.05), "it falls by the same factor in every part of its turn"


def test_means_of_channels_that_are_mostly_zero_or_all_alike() -> None:
    squares = torch.zeros(10, 2, dtype=torch.float64)
    squares[0, 0], squares[:, 1] = 5.0, 2.0
    assert ordinary_means(squares).tolist() == [0.0, 2.0]
    assert not plan(squares, torch.ones(2), keep=0).left(1.0).any()
    assert without_zeros(Coupling(np.array([1, 2]), np.zeros(2))) is None


@pytest.mark.parametrize("op", ["CoupledDyISRU", "SkipCoupledDyT", "CoupledDerf"])
def test_graphs_fade_as_modules_do(op: str) -> None:
    proto, arrays = model_of(op)
    graph = GraphModule(ir.from_proto(proto))
    names = [name for name in ("alpha", "beta", "shift") if name in arrays]
    parameters = NormParameters(
        arrays["weight"], arrays["bias"], {name: arrays[name] for name in names},
        Coupling(arrays["channels"], arrays["coupling"]),
    )  # fmt: skip
    module = MODULES[op.removeprefix("Skip").removeprefix("Coupled").lower()].from_parameters(parameters)
    feeds = {name: torch.from_numpy(arrays[name]) for name in ("X", "skip") if name in arrays}
    x = sum(feeds.values())
    assert isinstance(x, torch.Tensor)
    squares = observed_squares(graph, graph, [feeds, feeds])
    assert torch.allclose(squares["n"], torch.cat([x[:, [6, 0, 3]].square()] * 2))
    model = nn.Sequential(copy.deepcopy(module))
    assert torch.equal(observed_squares(model, model, [x, x])["0"], squares["n"])  # type: ignore[list-item]
    for norms in (coupled_norms(graph), coupled_norms(nn.Sequential(module))):
        (norm,) = norms.values()
        norm.fade(torch.tensor([0.2, 1.0, 0.0], dtype=torch.float64), MEANS)
    with torch.no_grad():
        assert relative_error(graph(**feeds)["Y"].numpy(), module(x).numpy()) < 1e-5


class Coupled(nn.Module):
    """A function between two layers, the second of which reads channels of several sizes."""

    def __init__(self, keep_norm: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, C, bias=False)
        self.norm: nn.Module = nn.RMSNorm(C) if keep_norm else module_of("dyisru")
        self.last = nn.Linear(C, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [2 * torch.randn(6, 4, 5, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("keep", [0, 1])
def test_a_distillation_leaves_as_many_channels_as_asked_for(
    keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "SAVE_EVERY", 0.0)
    teacher, student, parted = Coupled(True), Coupled(False), Coupled(False)
    seen = []

    def see(told: StepProgress) -> None:
        seen.append(student.norm.strengths().detach().clone())  # type: ignore[operator]
        if len(seen) == 1:
            assert int((seen[-1] > 0).sum()) == 3, "none has gone so soon"

    arguments = {"steps": 40, "learning_rate": 0.01, "precision": "float32", "coupled": keep, "logits": None}
    run = distil(student, teacher, batches(), progress=see, **arguments)  # type: ignore[arg-type]
    left = student.norm.to_parameters().coupling  # type: ignore[operator]
    assert (0 if left is None else len(left.channels)) == keep == run.coupled
    assert all(int((strengths > 0).sum()) == keep for strengths in seen[20:])
    assert keep == 0 or not torch.equal(seen[20][seen[20] > 0], seen[39][seen[39] > 0]), "what stays is trained"
    assert run.losses[-1][1] < run.losses[0][1]

    def stop(told: StepProgress) -> None:
        if told.step == 10:
            raise KeyboardInterrupt

    file = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        distil(parted, teacher, batches(), checkpoint=file, progress=stop, **arguments)  # type: ignore[arg-type]
    resumed = Coupled(False)
    assert distil(resumed, teacher, batches(), checkpoint=file, **arguments).resumed_from == 9  # type: ignore[arg-type]
    for one, other in zip(student.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_how_many_stay_cannot_be_less_than_none() -> None:
    with pytest.raises(UsageError, match="coupled must be 0 or more, not -1"):
        distil(Coupled(False), Coupled(True), batches(), steps=1, coupled=-1)


def test_padding_is_not_looked_at() -> None:
    model = nn.Sequential(module_of("dyt"))
    batch = {"x": X.float().reshape(2, 100, C), "attention_mask": (torch.arange(200) % 3 > 0).reshape(2, 100)}
    squares = observed_squares(model, lambda given: model(given["x"]), [batch])["0"]
    assert torch.equal(squares, X.float()[torch.arange(200) % 3 > 0][:, [6, 0, 3]].square())

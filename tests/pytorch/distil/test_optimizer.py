"""Which parameter is moved by which optimiser, and how fast."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")

from torch import nn  # noqa: E402

from dynorm_onnx.graph.files import model_io  # noqa: E402
from dynorm_onnx.pytorch.distil.muon import Muon  # noqa: E402
from dynorm_onnx.pytorch.distil.optimizer import (  # noqa: E402
    MATRIX_RATE,
    make_optimizers,
    set_rates,
    trained_parameters,
)
from dynorm_onnx.pytorch.graph import GraphModule  # noqa: E402
from dynorm_onnx.pytorch.nn import DyISRU  # noqa: E402
from tests.shipped import MODEL  # noqa: E402


def small() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"table": nn.Embedding(13, 16), "norm": DyISRU(16), "inside": nn.Linear(16, 13 + 11), "head": nn.Linear(16, 13)}
    )


def test_matrices_of_layers_are_told_from_tables_vectors_and_what_gives_logits() -> None:
    trained = {t.name: t for t in trained_parameters(small(), "all")}
    assert {name for name, t in trained.items() if t.is_matrix} == {"inside.weight"}
    assert {name for name, t in trained.items() if t.is_norm} == {"norm.weight", "norm.bias", "norm.log_beta"}
    assert not any(t.is_matrix for t in trained_parameters(small(), "norms"))


def test_of_the_shipped_model_the_layers_inside_are_matrices() -> None:
    matrices = [t for t in trained_parameters(GraphModule(model_io.load(MODEL)), "all") if t.is_matrix]
    assert len(matrices) == 4 * 7 and {160, 432} == {side for t in matrices for side in t.parameter.shape}


def test_every_parameter_is_moved_by_one_optimiser_at_a_rate_relative_to_its_size() -> None:
    trained = trained_parameters(small(), "all")
    optimizers = make_optimizers(trained, 0.01, 0.002, torch.float32)
    assert [type(optimizer) for optimizer in optimizers] == [torch.optim.AdamW, Muon]
    moved = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, moved)) == sorted(id(t.parameter) for t in trained)
    set_rates(optimizers, step=5, steps=100)  # the peak: warm-up takes a twentieth
    rates = {id(group["params"][0]): group["lr"] for o in optimizers for group in o.param_groups}
    for t in trained:
        wanted = 0.002 if t.is_norm else 0.01 * (MATRIX_RATE if t.is_matrix else 1)
        assert rates[id(t.parameter)] == pytest.approx(wanted * t.size)
    assert len(make_optimizers(trained_parameters(small(), "norms"), 0.01, 0.002, torch.float32)) == 1


def test_a_few_huge_weights_of_a_vector_do_not_speed_up_all_others() -> None:
    module = nn.ModuleDict({"norm": DyISRU(64)})
    with torch.no_grad():
        module["norm"].weight.copy_(0.2 * torch.randn(64, generator=torch.Generator().manual_seed(0)))
        usual = {t.name: t.size for t in trained_parameters(module, "norms")}["norm.weight"]
        median = float(module["norm"].weight.abs().median())
        module["norm"].weight[5] = 1e6
    assert usual == pytest.approx(0.2, rel=0.2)
    found = {t.name: t.size for t in trained_parameters(module, "norms")}["norm.weight"]
    assert found == pytest.approx(20 * median, rel=0.1)

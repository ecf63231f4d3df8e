"""replace_norms(): which norms, what becomes of them, and how good the fits are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dynorm_onnx.calibration.norms.calibrate import calibrate_norms
from dynorm_onnx.calibration.norms.fit_rows import Leeway
from dynorm_onnx.errors import DataError, NoSiteError, UsageError
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.lower import lower
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.pytorch import DyISRU, DyT, export, replace_norms
from dynorm_onnx.pytorch.nn import MODULES, ElementwiseNorm
from dynorm_onnx.runtime.session import runnable
from tests.pytorch import hf_models
from tests.tolerances import relative_error

C = 16


class Block(nn.Module):
    """A residual block with a norm of its own and one that may be shared."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(C, eps=1e-6)
        self.linear = nn.Linear(C, C)
        self.shared = shared
        nn.init.uniform_(self.input_layernorm.weight, 0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(x + functional.gelu(self.linear(self.input_layernorm(x))))


class Model(nn.Module):
    """Two blocks that share a LayerNorm, a norm that is never called, and a head."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.LayerNorm(C)
        self.blocks = nn.ModuleList([Block(shared), Block(shared)])
        self.unused = nn.LayerNorm(C)
        self.final = nn.LayerNorm(C, bias=False)
        self.head = nn.Linear(C, 3)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        for block in self.blocks:
            x = block(scale * x)
        return self.head(self.final(x))


def data(batches: int = 3) -> list[torch.Tensor]:
    return [2 * torch.randn(4, 5, C, generator=torch.Generator().manual_seed(i)) + 0.3 for i in range(batches)]


def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.mark.parametrize("to", MODULES)
def test_every_norm_is_replaced_and_fitted(to: str) -> None:
    original, converted = model().eval(), model().train()
    report = replace_norms(converted, to, data())
    rows = {row.name: row for row in report.norms}
    assert report.converted == (
        "blocks.0.input_layernorm",
        "blocks.0.shared",
        "blocks.1.input_layernorm",
        "final",
    )
    assert rows["unused"].status == "refused" and rows["unused"].reason == "the data does not reach it"
    assert [rows[name].kind for name in report.converted] == ["rms", "layer", "rms", "layer"]
    assert all(row.error is not None and row.error < 0.65 for row in report.norms if row.status == "converted")
    assert converted.blocks[0].shared is converted.blocks[1].shared
    assert isinstance(converted.final, MODULES[to]) and converted.final.training
    assert not any(isinstance(m, nn.RMSNorm) for m in converted.modules())
    x = data(5)[-1]
    with torch.no_grad():
        error = relative_error(converted.eval()(x).numpy(), original(x).numpy())
    assert error < 0.6  # sixteen random channels, one token's length as good as any: far from a real model's
    assert f"4 of 5 norms replaced by {to}" in str(report) and "does not reach it" in str(report)


def test_fitting_leaves_no_trace() -> None:
    converted = model().train()
    replace_norms(converted, "dyt", data())
    assert converted.training and all(module.training for module in converted.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in converted.parameters())
    assert not any(module._forward_hooks for module in converted.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping"])
def test_forms_of_batches(form: str) -> None:
    batches = {
        "tensor": data(),
        "tuple": [(x, 1.0) for x in data()],
        "mapping": [{"x": x, "scale": 1.0} for x in data()],
    }
    converted, expected = model(), model()
    replace_norms(converted, "dyt", iter(batches[form]))  # any iterable
    replace_norms(expected, "dyt", data())
    for one, other in zip(converted.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_fit_reads_the_converted_model() -> None:
    """The last norm is fitted on what the replaced ones before it give, and so differs from a fit of it alone."""
    together, alone = model(), model()
    replace_norms(together, "dyisru", data())
    replace_norms(alone, "dyisru", data(), only="final")
    assert relative_error(together.final.to_parameters().weight, alone.final.to_parameters().weight) > 1e-3


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_fits_are_those_of_the_onnx_path(name: str, tmp_path: Path) -> None:
    """Of functions of single channels, and of coupled ones."""
    batches = [hf_models.inputs(name, rows=4, seed=seed) for seed in range(3)]
    path = tmp_path / "original.onnx"
    export(
        hf_models.build(name), (), path, kwargs=hf_models.inputs(name, 2), opset=18, input_names=["input_ids"],
        output_names=["logits"], dynamic_shapes=hf_models.dynamic_shapes(name),
    )  # fmt: skip
    feeds = [{key: value.numpy() for key, value in batch.items()} for batch in batches]
    for coupled in (0, 3):
        prepared = model_io.prepare(model_io.load(path))
        norms = lower(prepared, find_sites(prepared, load=runnable).sites)
        leeway = {norm.site_name: Leeway(coupled) for norm in norms}
        fits = calibrate_norms(prepared, norms, REGISTRY["dyisru"], feeds, lambda done, total: None, leeway).fits
        replaced = hf_models.build(name)
        report = replace_norms(replaced, "dyisru", batches, coupled=coupled)
        assert len(fits) == len(report.converted) == hf_models.ARCHITECTURES[name].norms
        errors = {row.name: row.error for row in report.norms}
        for site, fit in fits.items():
            module = replaced.get_submodule(site)
            assert isinstance(module, DyISRU)
            assert errors[site] == pytest.approx(fit.relative_error, rel=1e-3)
            ours, theirs = module.to_parameters(), fit.parameters
            assert relative_error(ours.weight, theirs.weight) < 1e-2  # the search over beta ends in steps of 0.1 %
            assert relative_error(np.log(ours.scalars["beta"]), np.log(theirs.scalars["beta"])) < 1e-2


@pytest.mark.parametrize("name", hf_models.ARCHITECTURES)
def test_the_norms_of_hugging_face_models(name: str) -> None:
    architecture = hf_models.ARCHITECTURES[name]
    original, converted = hf_models.build(name), hf_models.build(name)
    report = replace_norms(converted, "derf", [hf_models.inputs(name, 4, seed=seed) for seed in range(3)])
    assert len(report.converted) == len(report.norms) == architecture.norms
    assert {row.kind for row in report.norms} == {architecture.kind}
    batch = hf_models.inputs(name, 4, seed=9)
    with torch.no_grad():
        error = relative_error(converted(**batch).logits.numpy(), original(**batch).logits.numpy())
    assert 0.001 < error < 0.7


def test_patterns() -> None:
    converted = model()
    report = replace_norms(converted, "dyt", data(), keep=["*shared", "re:^final$"])
    assert report.converted == ("blocks.0.input_layernorm", "blocks.1.input_layernorm")
    assert {row.name: row.reason for row in report.norms if row.status == "kept"} == {
        "blocks.0.shared": "keep *shared",
        "final": "keep re:^final$",
    }
    assert isinstance(converted.final, nn.LayerNorm)
    report = replace_norms(converted, "dyt", data(), only="final")
    assert report.converted == ("final",)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"to": "gelu"}, UsageError, "'gelu' is not one of dyisru, dyt, derf"),
        ({"keep": "nothing"}, UsageError, "keep 'nothing' matches none of the 5 norms"),
        ({"only": "re:("}, UsageError, "only 're:\\(' is no regular expression"),
        ({"keep": "*"}, NoSiteError, "leave no norm"),
        ({"data": []}, DataError, "holds no batch"),
        ({"data": [3.0]}, DataError, "not float"),
        ({"data": [], "per_channel": False}, UsageError, "training from scratch"),
        ({"initial": {"gamma": 1.0}}, UsageError, "DyISRU takes no such value"),
    ],
)
def test_errors(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace_norms(model(), **arguments)


def test_a_model_without_norms() -> None:
    with pytest.raises(NoSiteError, match="no norm that could be replaced"):
        replace_norms(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))


def test_an_error_of_the_model_leaves_it_as_it_was() -> None:
    converted = model()
    with pytest.raises(RuntimeError, match="shape"):
        replace_norms(converted, "dyt", [*data(2), torch.randn(2, C + 1)])
    assert isinstance(converted.final, nn.LayerNorm)
    assert not any(module._forward_hooks for module in converted.modules())


def test_from_scratch_outside_language_models() -> None:
    converted = model().half()
    report = replace_norms(converted, "dyt")
    assert len(report.converted) == 5 and all(row.error is None for row in report.norms)
    assert converted.final.alpha.tolist() == [0.5] and converted.final.weight.dtype == torch.float16
    again = model()
    replace_norms(again, "dyisru", per_channel=True, initial={"beta": 2.0, "weight": 1.0})
    assert again.final.log_beta.shape == (C,) and again.final.weight[0] == 1.0
    assert again.final.log_beta[0].item() == pytest.approx(math.log(2.0))


def test_from_scratch_in_a_language_model() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 4096)
            self.input_layernorm, self.norm = nn.RMSNorm(4096), nn.RMSNorm(4096)
            self.head = nn.Linear(4096, 11)

    language = Language()
    replace_norms(language, "dyt")
    assert isinstance(language.norm, DyT)
    assert language.input_layernorm.alpha.item() == pytest.approx(0.8)
    assert language.norm.alpha.item() == pytest.approx(0.2)
    other = Language()
    replace_norms(other, "dyt", language_model=False)
    assert other.norm.alpha.item() == 0.5


def test_a_state_of_a_fitted_model_loads() -> None:
    fitted, fresh = model().eval(), model().eval()
    replace_norms(fitted, "dyisru", data(), keep="unused")
    replace_norms(fresh, "dyisru", per_channel=True, keep="unused")
    fresh.load_state_dict(fitted.state_dict())
    x = data(1)[0]
    assert torch.equal(fresh(x), fitted(x))
    assert sum(isinstance(module, ElementwiseNorm) for module in fresh.modules()) == 4


def test_torchs_own_encoder_does_not_go_around_the_modules() -> None:
    """Its fused path for inference reads the weights of two LayerNorms and calls neither."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(C, nhead=4, dim_feedforward=32, batch_first=True, norm_first=True).eval()
    x = torch.randn(8, 6, C)
    with torch.no_grad():
        original = layer(x)
        assert len(replace_norms(layer, "dyt", [x]).converted) == 2
        fused = layer(x)
    plain = layer(x)  # with gradients torch takes the path through the modules
    assert relative_error(fused.numpy(), plain.detach().numpy()) < 1e-6
    assert 1e-4 < relative_error(fused.numpy(), original.numpy()) < 0.5


@pytest.mark.slow
def test_gated_norms_of_hugging_face() -> None:
    transformers = hf_models.transformers
    torch.manual_seed(0)
    config = transformers.Mamba2Config(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_heads=4, head_dim=16, state_size=8, n_groups=1,
        chunk_size=8, use_cache=False,
    )  # fmt: skip
    converted = transformers.Mamba2ForCausalLM(config).eval()
    report = replace_norms(converted, "dyisru", [{"input_ids": torch.randint(0, 50, (3, 16))} for _ in range(2)])
    assert [row.kind for row in report.norms] == ["rms", "rms, gated", "rms"]
    assert len(report.converted) == 3
    assert converted(input_ids=torch.randint(0, 50, (2, 9))).logits.isfinite().all()


class WithSink(nn.Module):
    """Token 0 is massive in channel 5, and the lengths of the others vary."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.norm = nn.RMSNorm(32)
        self.out = nn.Linear(32, 50)
        with torch.no_grad():
            self.table.weight[0, 5] = 500.0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.table(ids)))


@pytest.mark.parametrize(("coupled", "most"), [(None, 32), (0, 0), (2, 2)])
def test_channels_are_coupled_where_a_token_is_massive(coupled: int | None, most: int) -> None:
    torch.manual_seed(0)
    sunk, rng = WithSink(), torch.Generator().manual_seed(0)
    batches = [torch.randint(1, 50, (8, 16), generator=rng) for _ in range(4)]
    for batch in batches:
        batch[:, 0] = 0
    report = replace_norms(sunk, "dyisru", batches, coupled=coupled)
    assert isinstance(sunk.norm, DyISRU) and len(report.converted) == 1
    coupling = sunk.norm.to_parameters().coupling
    if not most:
        assert coupling is None
    else:
        assert coupling is not None and coupling.channels[0] == 5 and len(coupling.channels) <= most


def test_no_channel_is_coupled_where_no_token_is_massive() -> None:
    plain = model()
    replace_norms(plain, "dyisru", data())
    assert plain.final.to_parameters().coupling is None

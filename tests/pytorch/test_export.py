"""Export: one node per module with its body in the file, and the same numbers as in PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.nn import functional

import dynorm_onnx
from dynorm_onnx import convert
from dynorm_onnx.bench.__main__ import main as bench
from dynorm_onnx.errors import UsageError
from dynorm_onnx.functions import OPERATORS, Form
from dynorm_onnx.pytorch import Derf, DyISRU, DyT, as_dynorm, export, replace_norms
from dynorm_onnx.pytorch.nn import MODULES, ElementwiseNorm
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.library import onnxruntime
from dynorm_onnx.runtime.placement import placement
from dynorm_onnx.runtime.session import has_kernels, make_session
from tests.pytorch import hf_models
from tests.pytorch.test_foreign import DynamicTanh
from tests.pytorch.test_nn import TYPES, random_module
from tests.tolerances import TOLERANCE, relative_error

C = 12
NAMES = ("dyisru", "dyt", "derf")


class Model(nn.Module):
    """Three modules once, one of them called twice, between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(C, C), nn.Linear(C, C)
        self.norms = nn.ModuleDict(
            {name: random_module(name, C, per_channel=name != "dyt", seed=i) for i, name in enumerate(NAMES)}
        )
        self.foreign = DynamicTanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norms["dyt"](x)
        h = functional.gelu(self.norms["dyisru"](self.a(h))) + x
        h = self.norms["dyt"](self.norms["derf"](self.b(h)))
        return h.flatten(0, 1)


class Typed(nn.Module):
    """A module in one type inside a model of another."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype, outer: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype, self.outer = inner, dtype, outer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.to(self.dtype)).to(self.outer)


class SideBySide(nn.Module):
    """Several modules of one input, with an output each."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.each = nn.ModuleList(modules)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(module(x) for module in self.each)


def nodes_of(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.domain == "dynorm"]


def dynamic() -> tuple[dict[int, object]]:
    return ({0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")},)


def outputs(path: Path, x: dict[str, torch.Tensor], *, kernels: bool) -> np.ndarray:
    session = make_session(path, kernels=kernels)
    return next(iter(run(session, {name: value.numpy() for name, value in x.items()}).values()))


@pytest.mark.parametrize("opset", [18, 21, 25, None])
def test_one_node_per_call_at_every_opset(opset: int | None, tmp_path: Path) -> None:
    model, path = Model(), tmp_path / "model.onnx"
    del model.foreign
    written = export(model, torch.randn(2, 3, C), path, opset=opset, dynamic_shapes=dynamic(), input_names=["x"])
    loaded = onnx.load(path)
    onnx.checker.check_model(loaded)
    versions = {entry.domain: entry.version for entry in loaded.opset_import}
    assert versions["dynorm"] == 1 and opset in (None, versions[""])
    assert {f.name: f.opset_import[0].version for f in loaded.functions} == dict.fromkeys(
        ("DyT", "DyISRU", "Derf"), versions[""]
    )
    nodes = nodes_of(written)
    assert [node.op_type for node in nodes] == ["DyT", "DyISRU", "Derf", "DyT"]
    assert [node.name for node in nodes] == ["norms.dyt", "norms.dyisru", "norms.derf", "norms.dyt_1"]
    assert all([str(d) for d in node.outputs[0].shape or ()] == ["batch", "sequence", str(C)] for node in nodes)
    assert all(value.const_value is not None for node in nodes for value in node.inputs[1:])
    x = torch.randn(3, 7, C)
    for kernels in (False, True):
        got = outputs(path, {"x": x}, kernels=kernels)
        assert relative_error(got, model(x).detach().numpy()) < TOLERANCE["float32"]
    text = path.read_bytes()
    assert b"stack_trace" not in text and str(Path(__file__).parent).encode() not in text


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = Model().train()
    model.a.eval()
    before = dict(model.named_modules())
    export(model, torch.randn(2, 3, C), tmp_path / "model.onnx")
    assert dict(model.named_modules()) == before
    assert model.training and model.b.training and not model.a.training
    with pytest.raises(Exception, match="reduction dim"):
        export(model, torch.randn(2, 3, C + 1), tmp_path / "other.onnx")
    assert dict(model.named_modules()) == before and not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize("coupled", [0, 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_parity_of_each_module(dtype: str, coupled: int, tmp_path: Path) -> None:
    """In and out in a type that numpy knows, the modules in their own; all in one file, for an export takes seconds."""
    modules = {name: random_module(name, C, per_channel=True, coupled=coupled).to(TYPES[dtype]) for name in MODULES}
    outer = torch.float64 if dtype == "double" else torch.float32
    path, model = tmp_path / "model.onnx", SideBySide([Typed(m, TYPES[dtype], outer) for m in modules.values()])
    written = export(model, torch.randn(2, C).to(outer), path, opset=18, input_names=["x"], output_names=[*modules])
    nodes = nodes_of(written)
    assert len(nodes) == len(modules)
    for node in nodes:
        function, form = OPERATORS[node.op_type]
        assert form == Form(coupled=coupled > 0)
        types = dict(zip(function.input_names(form), [value and value.dtype for value in node.inputs], strict=True))
        assert types.pop("X") == types.pop("weight") == types.pop("bias")
        assert types.pop("channels", ir.DataType.INT64) == ir.DataType.INT64
        assert set(types.values()) == {ir.DataType.FLOAT}
    assert {OPERATORS[node.op_type][0].name for node in nodes} == set(modules)
    x = torch.randn(2, C).to(TYPES[dtype]).to(outer)
    for kernels in (False, *([True] if not coupled else [])):
        found = run(make_session(path, kernels=kernels), {"x": x.numpy()})
        for name, module in modules.items():
            expected = module(x.to(TYPES[dtype])).detach().to(torch.float64).numpy()
            assert relative_error(found[name], expected) < TOLERANCE[dtype], name


@pytest.mark.skipif(
    not torch.cuda.is_available() or "CUDAExecutionProvider" not in onnxruntime().get_available_providers(),
    reason="needs a GPU, a torch for it, and pip install dynorm-onnx[gpu]",
)
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_parity_on_cuda(name: str, dtype: str, tmp_path: Path) -> None:
    module, path = random_module(name, C, per_channel=True).to("cuda", TYPES[dtype]), tmp_path / "model.onnx"
    x = torch.randn(64, C, device="cuda")
    model = nn.Sequential(nn.Identity(), Typed(module, TYPES[dtype], torch.float32))
    export(model, x, path, opset=18, input_names=["x"])
    expected = model(x).detach().cpu().double().numpy()
    for kernels in (False, *([True] if has_kernels("cuda") else [])):
        session = make_session(path, provider="cuda", kernels=kernels)
        got = next(iter(run(session, {"x": x.cpu().numpy()}).values()))
        assert relative_error(got, expected) < TOLERANCE[dtype]


def test_a_bare_module_and_another_type_of_input(tmp_path: Path) -> None:
    module, path = random_module("dyisru", C, per_channel=False), tmp_path / "model.onnx"
    x = torch.randn(2, C).half()
    written = export(module, (x,), path, input_names=["x"])
    (node,) = nodes_of(written)
    assert node.inputs[0].dtype == node.inputs[1].dtype == ir.DataType.FLOAT  # the wider of the two
    expected = module(x).detach().numpy()
    assert expected.dtype == np.float16
    got = outputs(path, {"x": x}, kernels=True)
    assert got.dtype == np.float16 and relative_error(got, expected) < TOLERANCE["float16"]


@pytest.mark.slow
@pytest.mark.parametrize("name", hf_models.ARCHITECTURES)
def test_parity_in_hugging_face_models(name: str, tmp_path: Path) -> None:
    architecture = hf_models.ARCHITECTURES[name]
    model, path = hf_models.build(name), tmp_path / "model.onnx"
    replace_norms(model, "dyisru", [hf_models.inputs(name, 16, seed=seed) for seed in range(2)])
    written = export(
        model, (), path, kwargs=hf_models.inputs(name, 2), opset=18, output_names=["logits"],
        dynamic_shapes=hf_models.dynamic_shapes(name),
    )  # fmt: skip
    assert [node.op_type for node in nodes_of(written)] == ["DyISRU"] * architecture.norms
    x = hf_models.inputs(name, 3, length=17, seed=5)
    expected = model(**x).logits.detach().numpy()
    for kernels in (False, True):
        assert relative_error(outputs(path, x, kernels=kernels), expected) < TOLERANCE["float32"]
    taken = placement(make_session(path, kernels=True))
    assert taken is not None
    assert sum(node.domain == "dynorm" for node in taken) == architecture.norms


@pytest.mark.slow
def test_a_half_precision_model_is_as_exact_as_in_pytorch(tmp_path: Path) -> None:
    model, path = hf_models.build("bert"), tmp_path / "model.onnx"
    replace_norms(model, "dyt", [hf_models.inputs("bert", 4)])
    exact, x = model.double(), hf_models.inputs("bert", 3, seed=5)
    wanted = exact(**x).logits.detach().numpy()
    half = model.half()
    export(half, (), path, kwargs=x, opset=18, output_names=["logits"])
    ours = relative_error(half(**x).logits.detach().numpy(), wanted)
    for kernels in (False, True):
        assert relative_error(outputs(path, x, kernels=kernels), wanted) < max(2 * ours, TOLERANCE["float16"])


def test_foreign_modules_become_nodes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 10), DynamicTanh())
    path, x = tmp_path / "model.onnx", torch.randn(4, 10)
    written = export(model, x, path, input_names=["x"])
    assert [(node.op_type, node.name) for node in nodes_of(written)] == [("DyT", "1")]
    assert isinstance(model[1], DynamicTanh)
    assert relative_error(outputs(path, {"x": x}, kernels=True), model(x).detach().numpy()) < TOLERANCE["float32"]
    mapped = export(model, x, path, mappings={DynamicTanh: lambda m: Derf(10)})
    assert [node.op_type for node in nodes_of(mapped)] == ["Derf"]
    as_dynorm(model)
    assert isinstance(model[1], DyT)


def test_opsets_that_torch_does_not_write(tmp_path: Path) -> None:
    model = nn.Sequential(DyISRU(4), nn.GELU())
    with pytest.raises(UsageError, match="opset 17 is too old"):
        export(model, torch.randn(2, 4), tmp_path / "model.onnx", opset=17)
    with pytest.raises(UsageError, match="cannot write this model at opset 99"):
        export(model, torch.randn(2, 4), tmp_path / "model.onnx", opset=99)
    assert not list(tmp_path.iterdir())


def test_an_exported_file_is_used_like_a_converted_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    model = Model()
    export(model, torch.randn(2, 3, C), path, input_names=["x"], dynamic_shapes=dynamic())
    x = torch.randn(1, 5, C)
    (y,) = dynorm_onnx.session(path).run(None, {"x": x.numpy()})
    assert relative_error(y, model(x).detach().numpy()) < TOLERANCE["float32"]
    assert convert.main([str(path), "--to", "dyt"]) == 3
    assert "4 dynorm nodes stand in their places already" in capfd.readouterr().err
    assert bench(["model", str(path), "--rows", "1x16", "--seconds", "0.02", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert {row["variant"] for row in rows} >= {"original", "converted", "converted-kernels"}


def test_modules_stay_trainable_after_export(tmp_path: Path) -> None:
    model = Model()
    export(model, torch.randn(2, 3, C), tmp_path / "model.onnx")
    model(torch.randn(2, 3, C)).square().sum().backward()
    ours = [module for module in model.modules() if isinstance(module, ElementwiseNorm)]
    assert len(ours) == len(NAMES)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for module in ours for p in module.parameters())

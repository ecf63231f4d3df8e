"""Distillation: losses, rates, resuming, gradual replacement, and the way through an ONNX file."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from dynorm_onnx.errors import UsageError
from dynorm_onnx.graph import model_io
from dynorm_onnx.pipeline import convert_model
from dynorm_onnx.runtime.session import make_session
from dynorm_onnx.runtime.validate import validate

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")

from torch import nn  # noqa: E402

from dynorm_onnx.pytorch.distil import distil  # noqa: E402
from dynorm_onnx.pytorch.distil import trainer as trainer_module  # noqa: E402
from dynorm_onnx.pytorch.distil.losses import distance, kl, unlikeness  # noqa: E402
from dynorm_onnx.pytorch.distil.optimizer import rate_at, trained_parameters  # noqa: E402
from dynorm_onnx.pytorch.graph import GraphModule  # noqa: E402
from dynorm_onnx.pytorch.replace import replace_norms  # noqa: E402

BYTE_LLAMA = Path(__file__).parents[2] / "models" / "byte_llama"


class Tiny(nn.Module):
    """A language model of 13 words, two blocks of norm and layer, without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 16)
        self.norms = nn.ModuleList(nn.RMSNorm(16) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, 13, bias=False)

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embedding(input_ids)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            x = x + torch.tanh(layer(norm(x)))
        return {"logits": self.head(self.norms[2](x)), "hidden": x}


@pytest.fixture
def teacher() -> Tiny:
    torch.manual_seed(0)
    model = Tiny()
    with torch.no_grad():
        model.head.weight.mul_(3)
        model.embedding.weight.mul_(torch.logspace(-0.5, 0.5, 13)[:, None])
    return model.eval()


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 13, (4, 9), generator=rng)} for _ in range(5)]


def student_of(teacher: Tiny, batches: list[dict[str, torch.Tensor]]) -> Tiny:
    student = copy.deepcopy(teacher)
    replace_norms(student, "dyisru", batches)
    return student


def kl_of(student: nn.Module, teacher: nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    with torch.no_grad():
        return float(np.mean([float(kl(student(**b)["logits"], teacher(**b)["logits"], None)) for b in batches]))


@pytest.mark.parametrize(("train", "precision"), [("all", "float32"), ("norms", "float32"), ("all", "bfloat16")])
def test_the_student_comes_closer_and_only_what_is_asked_for_moves(
    train: str, precision: str, teacher: Tiny, batches: list[dict[str, torch.Tensor]]
) -> None:
    student = student_of(teacher, batches)
    before, weight = kl_of(student, teacher, batches), student.layers[0].weight.clone()
    run = distil(student, teacher, batches, steps=60, train=train, precision=precision)
    assert kl_of(student, teacher, batches) < 0.5 * before
    assert torch.equal(weight, student.layers[0].weight) is (train == "norms")
    assert run.tokens == 60 * 4 * 9 and run.losses[0][0] == 1 and run.losses[-1][0] == 60
    assert all(parameter.requires_grad and parameter.grad is None for parameter in student.parameters())
    json.dumps(run.as_dict(), allow_nan=False)


def test_an_interrupted_run_goes_on_to_the_same_weights(
    teacher: Tiny, batches: list[dict[str, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "SAVE_EVERY", 0.0)
    whole, parted = (student_of(teacher, batches) for _ in range(2))
    start = copy.deepcopy(parted)
    arguments = {"steps": 17, "seed": 3, "precision": "float32"}
    distil(whole, teacher, batches, **arguments)

    def stop_at_seven(told: object) -> None:
        if told.step == 8:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    file = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        distil(parted, teacher, batches, checkpoint=file, progress=stop_at_seven, **arguments)
    resumed = distil(start, teacher, batches, checkpoint=file, **arguments)
    assert resumed.resumed_from == 7 and resumed.tokens == 17 * 36
    for one, other in zip(whole.parameters(), start.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(UsageError, match=r"steps was 17.*delete it"):
        distil(start, teacher, batches, checkpoint=file, **{**arguments, "steps": 18})
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(UsageError, match="no checkpoint"):
        distil(start, teacher, batches, checkpoint=file, **arguments)


def test_norms_give_way_in_the_order_asked_for(teacher: Tiny, batches: list[dict[str, torch.Tensor]]) -> None:
    student = student_of(teacher, batches)
    order = ["norms.2", "norms.0", "norms.1"]
    seen: list[tuple[int, tuple[bool, ...]]] = []

    def look(told: object) -> None:
        original = tuple(isinstance(norm, nn.RMSNorm) for norm in student.norms)
        seen.append((told.step, original))  # type: ignore[attr-defined]

    distil(student, teacher, batches, steps=12, order=order, progress=look)
    assert seen[0][1] == (True, True, False)
    assert seen[3][1] == (False, True, False)
    assert seen[5][1] == (False, False, False)
    assert not any(isinstance(norm, nn.RMSNorm) for norm in student.norms)
    with pytest.raises(UsageError, match=r"order names 'norms\.7'"):
        distil(student, teacher, batches, steps=1, order=["norms.7"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 1, "train": "some"}, "not one of norms, all"),
        ({"steps": 1, "precision": "int8"}, "precision='int8'"),
    ],
)
def test_arguments_that_make_no_sense_are_named(
    arguments: dict, message: str, teacher: Tiny, batches: list[dict[str, torch.Tensor]]
) -> None:
    with pytest.raises(UsageError, match=message):
        distil(student_of(teacher, batches), teacher, batches, **arguments)


def test_padding_does_not_count() -> None:
    rng = torch.Generator().manual_seed(2)
    y, target = (torch.randn(2, 5, 7, generator=rng) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    other = torch.where(mask[..., None] == 1, y, 100.0)
    for measure in (kl, unlikeness):
        assert torch.allclose(measure(y, target, mask), measure(other, target, mask))
        assert not torch.allclose(measure(y, target, None), measure(other, target, None))
    alone = float(kl(y[:1, :3], target[:1, :3], None)) * 3 + float(kl(y[1:], target[1:], None)) * 5
    assert float(kl(y, target, mask)) == pytest.approx(alone / 8, rel=1e-5)


def test_hidden_states_count_as_much_as_they_are_given() -> None:
    rng = torch.Generator().manual_seed(2)
    student, teacher = ({name: torch.randn(2, 5, 7, generator=rng) for name in ("logits", "hidden")} for _ in range(2))
    plain = distance(student, teacher, None, "logits", 0.0)
    assert torch.allclose(plain, kl(student["logits"], teacher["logits"], None))
    more = distance(student, teacher, None, "logits", 0.5) - plain
    assert torch.allclose(more, 0.5 * unlikeness(student["hidden"], teacher["hidden"], None), atol=1e-6)
    assert float(distance(student, student, None, None, 0.0)) == pytest.approx(0, abs=1e-6)


def test_rates_rise_and_fall() -> None:
    rates = [rate_at(step, 100) for step in range(100)]
    assert max(rates) == rates[4] == 1.0 and rates[0] == pytest.approx(0.2) and rates[-1] < 0.03
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes((BYTE_LLAMA / "held_out.txt").read_bytes()[:24_000])
    return path


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="needs pip install dynorm-onnx[text]")
def test_the_command_distils_and_writes_the_weights_back(text: Path, tmp_path: Path) -> None:
    output = tmp_path / "distilled.onnx"
    report = convert_model(
        BYTE_LLAMA / "byte_llama.onnx", method="distil", steps=16, data=text, samples=24, max_length=64,
        tokenizer=BYTE_LLAMA / "tokenizer.json", time=False, output=output,
    ).as_dict()  # fmt: skip
    run = report["distillation"]
    assert (run["steps"], run["train"], run["tokens"]) == (16, "all", 16 * 24 * 64)
    assert run["losses"][-1]["loss"] < 0.7 * run["losses"][0]["loss"]
    assert not list(tmp_path.glob("*.pt")), "the checkpoint of a finished run is of no use"
    before, after = (ir.load(path).graph.initializers for path in (BYTE_LLAMA / "byte_llama.onnx", output))
    changed = {
        name for name, value in after.items()
        if name in before and not np.array_equal(value.const_value.numpy(), before[name].const_value.numpy())
    }  # fmt: skip
    assert changed == set(report["changed_initializers"]) and "model.embed_tokens.weight" in changed
    assert "model.rotary_emb.inv_freq" not in changed
    feeds = {"input_ids": np.frombuffer(text.read_bytes()[:512], np.uint8).astype(np.int64).reshape(8, 64)}
    quality = validate(make_session(BYTE_LLAMA / "byte_llama.onnx"), make_session(output), [feeds]).quality
    assert quality is not None and quality.kl_mean < 0.3


def test_training_the_norms_alone_leaves_the_weights_of_a_graph() -> None:
    module = GraphModule(model_io.load(BYTE_LLAMA / "byte_llama.onnx"))
    assert len(trained_parameters(module, "all")) == len(module.learned())
    with pytest.raises(UsageError, match="were its norms replaced"):
        trained_parameters(module, "norms")


def test_without_pytorch_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    with pytest.raises(UsageError, match=r"--method distil needs PyTorch: pip install dynorm-onnx\[torch\]"):
        convert_model(BYTE_LLAMA / "byte_llama.onnx", method="distil")

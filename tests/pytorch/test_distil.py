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

from dynorm_onnx.conversion.convert_model import convert_model
from dynorm_onnx.conversion.distilled import begins_fitted
from dynorm_onnx.errors import DataError, UsageError
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.lower import lower
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import make_session
from dynorm_onnx.runtime.validate import validate
from tests.tolerances import TOLERANCE, relative_error

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")

from torch import nn  # noqa: E402

from dynorm_onnx.pytorch.distil import distil  # noqa: E402
from dynorm_onnx.pytorch.distil import trainer as trainer_module  # noqa: E402
from dynorm_onnx.pytorch.distil.basis import learn_bases, usable_bases  # noqa: E402
from dynorm_onnx.pytorch.distil.hidden import PREFIX, shared_layers, told, with_hidden_outputs  # noqa: E402
from dynorm_onnx.pytorch.distil.losses import distance, hidden_error, kl, total, unlikeness  # noqa: E402
from dynorm_onnx.pytorch.distil.onnx_file import function_initializers, step_sized  # noqa: E402
from dynorm_onnx.pytorch.distil.optimizer import rate_at, trained_parameters  # noqa: E402
from dynorm_onnx.pytorch.graph import GraphModule  # noqa: E402
from dynorm_onnx.pytorch.replace import replace_norms  # noqa: E402

BYTE_LLAMA = Path(__file__).parents[2] / "models" / "byte_llama"

needs_tokenizers = pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None, reason="needs pip install dynorm-onnx[text]"
)


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
        each = [total([kl(student(**b)["logits"], teacher(**b)["logits"], None)]) for b in batches]
        return float(torch.stack(each).mean())


@pytest.mark.parametrize(("train", "precision"), [("all", "float32"), ("norms", "float32"), ("all", "bfloat16")])
def test_the_student_comes_closer_and_only_what_is_asked_for_moves(
    train: str, precision: str, teacher: Tiny, batches: list[dict[str, torch.Tensor]]
) -> None:
    student = student_of(teacher, batches)
    before, weight = kl_of(student, teacher, batches), student.layers[0].weight.clone()
    run = distil(student, teacher, batches, steps=60, learning_rate=0.01, train=train, precision=precision)
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
        ({"steps": 1, "learning_rate": 0.0}, "learning_rate must be above 0"),
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

    def kl_of_logits(*arguments: torch.Tensor | None) -> torch.Tensor:
        return total([kl(*arguments)])

    for measure in (kl_of_logits, lambda *arguments: total(unlikeness(*arguments))):
        assert torch.allclose(measure(y, target, mask), measure(other, target, mask))
        assert not torch.allclose(measure(y, target, None), measure(other, target, None))
    alone = float(kl_of_logits(y[:1, :3], target[:1, :3], None)) * 3 + float(kl_of_logits(y[1:], target[1:], None)) * 5
    assert float(kl_of_logits(y, target, mask)) == pytest.approx(alone / 8, rel=1e-5)


def test_outputs_without_logits_are_compared_by_their_unlikeness() -> None:
    rng = torch.Generator().manual_seed(2)
    student, teacher = ({name: torch.randn(2, 5, 7, generator=rng) for name in ("first", "second")} for _ in range(2))
    each = [total(unlikeness(student[name], teacher[name], None)) for name in student]
    assert torch.allclose(total(distance(student, teacher, None, None)), torch.stack(each).mean())
    assert float(total(distance(student, student, None, None))) == pytest.approx(0, abs=1e-6)
    with pytest.raises(DataError, match="no output in common"):
        distance({"other": student["first"]}, teacher, None, None)


def test_hidden_errors_are_relative_and_leave_padding_out() -> None:
    rng = torch.Generator().manual_seed(3)
    target = torch.randn(2, 3, 4, 5, generator=rng)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    student = {"a": 1.5 * target, "b": target}
    teacher = {"a": target, "b": target}
    assert float(total(hidden_error(student, teacher, ["a", "b"], None))) == pytest.approx(0.25 / 2)
    student["a"] = torch.where(mask[..., None, None] == 1, 1.5 * target, 1e3)
    assert float(total(hidden_error(student, teacher, ["a"], mask))) == pytest.approx(0.25)


def hidden_of(student: Tiny, teacher: Tiny, batch: dict[str, torch.Tensor]) -> float:
    names = [PREFIX + path for path in shared_layers(student, teacher)]
    with told(student, shared_layers(student, teacher)) as one, told(teacher, shared_layers(student, teacher)) as other:
        return float(total(hidden_error(one(**batch), other(**batch), names, None)).detach())


def test_layers_of_both_modules_are_watched_and_only_while_training(
    teacher: Tiny, batches: list[dict[str, torch.Tensor]]
) -> None:
    student = student_of(teacher, batches)
    assert shared_layers(student, teacher) == ["layers.0", "layers.1", "head"]
    assert shared_layers(student, lambda batch: batch) == []
    blind = copy.deepcopy(student)
    for model, weight in ((student, 20.0), (blind, 0.0)):
        distil(model, teacher, batches, steps=60, learning_rate=0.01, hidden=weight, precision="float32")
        assert not any(module._forward_hooks for module in [*model.modules(), *teacher.modules()])
    assert hidden_of(student, teacher, batches[0]) < 0.5 * hidden_of(blind, teacher, batches[0])


@pytest.fixture(scope="module")
def fitted_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as `--method fit` converts it in its own basis."""
    output = tmp_path_factory.mktemp("fitted") / "out.onnx"
    convert_model(
        BYTE_LLAMA / "byte_llama.onnx", to="dyisru", method="fit", data=BYTE_LLAMA / "held_out.txt", samples=8,
        tokenizer=BYTE_LLAMA / "tokenizer.json", time=False, optimize="none", rotate=False, output=output,
    )  # fmt: skip
    return output


@pytest.fixture
def fitted(fitted_file: Path) -> tuple[ir.Model, ir.Model]:
    """The shipped model, and that file, for this test alone."""
    original, converted = (
        model_io.prepare(model_io.load(path)) for path in (BYTE_LLAMA / "byte_llama.onnx", fitted_file)
    )
    return original, converted


@needs_tokenizers
def test_linear_layers_of_a_file_become_outputs_of_both(fitted: tuple[ir.Model, ir.Model]) -> None:
    original, converted = fitted
    both = with_hidden_outputs(original, converted)
    assert len(both.names) == 4 * 7 and "logits" not in both.names  # q, k, v, o, gate, up, down
    assert len(original.graph.outputs) == len(converted.graph.outputs) == 1
    feeds = {"input_ids": np.random.default_rng(0).integers(0, 256, (2, 9))}
    before, after = (run(make_session(model), feeds) for model in (both.original, both.converted))
    assert set(before) == set(after) == {"logits", *both.names}
    graph = GraphModule(both.converted)(input_ids=torch.from_numpy(feeds["input_ids"]))
    for name in both.names:
        assert relative_error(graph[name].detach().numpy(), after[name]) < TOLERANCE["float32"]
        assert relative_error(after[name], before[name]) > 1e-3


@needs_tokenizers
def test_a_basis_begins_as_none_and_is_learned_with_the_weights(fitted: tuple[ir.Model, ir.Model]) -> None:
    """The scale of the norms moves over without a change of outputs; with it training has one matrix more."""
    original, converted = fitted
    norms = lower(original, find_sites(original).sites)
    bases = usable_bases(original.graph, norms)
    assert [basis.channels for basis in bases] == [160]
    assert usable_bases(original.graph, norms[1:]) == (), "a norm that was kept reads the stream too"
    compared = with_hidden_outputs(original, converted, leave=bases[0].writers).names
    assert len(compared) == 4 * 5, "what writes into the stream has another basis in both"
    student, plain = GraphModule(converted, float_type=torch.float32), GraphModule(converted, float_type=torch.float32)
    learn_bases(student, bases, function_initializers(converted.graph))
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 9)))
    with torch.no_grad():
        before, after = plain(input_ids=ids)["logits"].numpy(), student(input_ids=ids)["logits"].numpy()
    assert relative_error(after, before) < 1e-5
    more = {t.name for t in trained_parameters(student, "all")} - {t.name for t in trained_parameters(plain, "all")}
    assert more == set(student.bases()) and len(more) == 1
    assert not more & {t.name for t in trained_parameters(student, "norms")}


def test_training_begins_with_the_fit_where_a_basis_is_learned() -> None:
    model = model_io.prepare(model_io.load(BYTE_LLAMA / "byte_llama.onnx"))
    norms = lower(model, find_sites(model).sites)
    assert begins_fitted(model, norms, "all")
    assert not begins_fitted(model, norms, "norms")
    assert not begins_fitted(model, norms[1:], "all"), "a norm that was kept reads the stream too"


def test_rows_of_all_batches_are_mixed_and_cut_to_the_size_of_a_step() -> None:
    ids = np.arange(48 * 256).reshape(48, 256)
    batches = [{"ids": rows, "mask": rows % 7} for rows in np.split(ids, 3)]
    short, scaled, image = {"ids": ids[:1, :7]}, {"ids": ids, "scale": np.ones(1)}, {"pixels": np.ones((2, 3), "f4")}
    cut = step_sized([*batches, short, scaled, image], seed=1)
    steps = [feeds for feeds in cut if "mask" in feeds]
    assert [feeds["ids"].shape for feeds in steps] == [(8, 256)] * 6
    rows = np.concatenate([feeds["ids"] for feeds in steps])
    assert np.array_equal(np.sort(rows[:, 0]), ids[:, 0]) and np.abs(np.diff(rows[:, 0])).min() > 0
    assert sum(len({int(row) // 16 for row in feeds["ids"][:, 0] // 256}) > 1 for feeds in steps) == 6
    assert all(np.array_equal(feeds["mask"], feeds["ids"] % 7) for feeds in steps)
    others = [feeds for feeds in cut if "mask" not in feeds]
    assert len(others) == 3 and any(feeds.get("scale") is scaled["scale"] for feeds in others)
    assert any(feeds.get("pixels") is image["pixels"] for feeds in others)
    again = step_sized(batches, seed=1)
    assert all(np.array_equal(one["ids"], other["ids"]) for one, other in zip(steps, again, strict=True))


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
@needs_tokenizers
def test_the_command_distils_and_writes_the_weights_back(text: Path, tmp_path: Path) -> None:
    output = tmp_path / "distilled.onnx"
    report = convert_model(
        BYTE_LLAMA / "byte_llama.onnx", method="distil", steps=30, learning_rate=0.006, data=text, samples=16,
        max_length=64, tokenizer=BYTE_LLAMA / "tokenizer.json", time=False, output=output,
    ).as_dict()  # fmt: skip
    run = report["distillation"]
    assert (run["steps"], run["train"], run["tokens"]) == (30, "all", 30 * 16 * 64)
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

"""Streams of PyTorch models: found where the basis can be chosen, refused where not, and learned with the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from dynorm_onnx.errors import UsageError
from tests.tolerances import relative_error

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")

from torch import Tensor, nn  # noqa: E402

from dynorm_onnx.pytorch.distil import distil  # noqa: E402
from dynorm_onnx.pytorch.distil.losses import kl, total  # noqa: E402
from dynorm_onnx.pytorch.distil.module_basis import bases_learned, learned_bases, usable_streams  # noqa: E402
from dynorm_onnx.pytorch.distil.module_streams import find_module_streams  # noqa: E402
from dynorm_onnx.pytorch.distil.optimizer import trained_parameters  # noqa: E402
from dynorm_onnx.pytorch.replace import replace_norms  # noqa: E402

CHANNELS, WORDS = 16, 13
IDS = torch.randint(0, WORDS, (4, 9), generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """Norm, attention without heads, norm, MLP: each read by layers, each written into the stream by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.RMSNorm(CHANNELS), nn.RMSNorm(CHANNELS)
        self.q, self.k, self.v = (nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(3))
        self.o = nn.Linear(CHANNELS, CHANNELS)
        self.up, self.down = nn.Linear(CHANNELS, 24), nn.Linear(24, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        x = x + self.o(nn.functional.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h), is_causal=True))
        return x + self.down(torch.tanh(self.up(self.second(x))))


class Model(nn.Module):
    """A pre-norm language model; `scale` multiplies the embedding, as Gemma's."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.embedding = nn.Embedding(WORDS, CHANNELS)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.RMSNorm(CHANNELS)
        self.head = nn.Linear(CHANNELS, WORDS, bias=False)

    def stream(self, ids: Tensor) -> Tensor:
        x = self.scale * self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, ids: Tensor) -> Any:
        return self.head(self.norm(self.stream(ids)))


class WithPositions(Model):
    """A vector that no layer gives is added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(9, CHANNELS))

    def stream(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions
        for block in self.blocks:
            x = block(x)
        return x


class TellsTheStream(Model):
    """The stream itself is an output."""

    def forward(self, ids: Tensor) -> Any:
        x = self.stream(ids)
        return self.head(self.norm(x)), x


def tied(model: Model) -> Model:
    model.head.weight = model.embedding.weight
    return model


def made(build: Callable[[], Model]) -> tuple[Model, Model]:
    """The model with norms of uneven weights, and the same with functions fitted in their place."""
    torch.manual_seed(0)
    teacher = build().eval()
    with torch.no_grad():
        teacher.head.weight.mul_(3)
        for module in teacher.modules():
            if isinstance(module, nn.RMSNorm):
                module.weight.copy_(torch.logspace(-0.5, 0.5, CHANNELS))
    student = copy.deepcopy(teacher)
    replace_norms(student, "dyisru", [IDS])
    return teacher, student


def call(model: nn.Module) -> Any:
    return model(IDS)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_writers_and_readers_of_a_pre_norm_model_are_found(scale: float) -> None:
    _, student = made(lambda: Model(scale))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    (stream,) = find_module_streams(student, call)
    assert stream.channels == CHANNELS
    assert set(stream.writers) == {"embedding", *(f"blocks.{i}.{name}" for i in (0, 1) for name in ("o", "down"))}
    assert {norm: set(readers) for norm, readers in stream.readers.items()} == {
        "blocks.0.first": {"blocks.0.q", "blocks.0.k", "blocks.0.v"}, "blocks.0.second": {"blocks.0.up"},
        "blocks.1.first": {"blocks.1.q", "blocks.1.k", "blocks.1.v"}, "blocks.1.second": {"blocks.1.up"},
        "norm": {"head"},
    }  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert not any(module._forward_hooks for module in student.modules())


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: tied(Model()), "'embedding.weight' is used elsewhere too"),
        (WithPositions, "written or read elsewhere too"),
        (TellsTheStream, "'output1' differs"),
    ],
)
def test_a_stream_with_anything_else_at_it_is_left(
    build: Callable[[], Model], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, student = made(build)
    with caplog.at_level("INFO"):
        assert find_module_streams(student, call) == ()
    assert why in caplog.text


def test_a_norm_that_was_kept_keeps_the_basis() -> None:
    teacher, _ = made(Model)
    replace_norms(teacher, "dyisru", [IDS], keep="blocks.1.second")
    assert find_module_streams(teacher, call) == ()


def test_a_basis_begins_as_none_and_is_multiplied_out_at_the_end() -> None:
    teacher, student = made(Model)
    names = list(student.state_dict())
    with torch.no_grad():
        before = call(student)
        with bases_learned(student, teacher, usable_streams(student, call)):
            assert relative_error(call(student).numpy(), before.numpy()) < 1e-6
            (change,) = learned_bases(student).values()
            assert sum(t.parameter is change for t in trained_parameters(student, "all")) == 1
            assert all(t.parameter is not change for t in trained_parameters(student, "norms"))
            change.copy_(0.2 * torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(2)))
            turned = call(student)
        after = call(student)
    assert relative_error(turned.numpy(), before.numpy()) > 0.01, "functions are not what norms are"
    assert relative_error(after.numpy(), turned.numpy()) < 1e-6
    assert list(student.state_dict()) == names and not learned_bases(student)
    assert all(parameter.is_contiguous() and parameter.requires_grad for parameter in student.parameters())


def test_what_is_multiplied_out_is_the_basis_after_the_last_step() -> None:
    teacher, stepped = made(Model)
    asked = copy.deepcopy(stepped)
    step = 0.2 * torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for student, pass_after in ((stepped, False), (asked, True)):
            with bases_learned(student, teacher, usable_streams(student, call)):
                call(student)
                next(iter(learned_bases(student).values())).copy_(step)
                if pass_after:
                    call(student)
        assert relative_error(call(stepped).numpy(), call(asked).numpy()) < 1e-6


def test_a_distillation_learns_it_with_the_weights() -> None:
    teacher, student = made(Model)
    names = list(student.state_dict())
    with torch.no_grad():
        before = float(total([kl(call(student), call(teacher), None)]))
    distil(student, teacher, [IDS], steps=60, learning_rate=0.01, logits="output", precision="float32")
    with torch.no_grad():
        assert float(total([kl(call(student), call(teacher), None)])) < 0.3 * before
    assert list(student.state_dict()) == names


@pytest.mark.parametrize(
    "arguments", [{"steps": 0}, {"steps": 1, "learning_rate": 0.0}, {"steps": 1, "precision": "x"}]
)
def test_arguments_that_make_no_sense_leave_the_weights_alone(arguments: dict[str, Any]) -> None:
    teacher, student = made(Model)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(UsageError):
        distil(student, teacher, [IDS], **arguments)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_an_interrupted_distillation_leaves_a_model_without_parametrisations() -> None:
    teacher, student = made(Model)
    names = list(student.state_dict())

    def stop(told: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(student, teacher, [IDS], steps=3, logits="output", precision="float32", progress=stop)
    assert list(student.state_dict()) == names

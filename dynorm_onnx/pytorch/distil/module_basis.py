"""Bases of a PyTorch model's streams as parametrisations of the weights at them, for the time of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from dynorm_onnx.pytorch.distil.basis import is_small_enough, move_weight
from dynorm_onnx.pytorch.distil.module_streams import READING_AXIS, ModuleStream, find_module_streams
from dynorm_onnx.pytorch.learned_basis import LearnedBasis
from dynorm_onnx.pytorch.norms import Norm, recognise


def usable_streams(student: nn.Module, call: Callable[[nn.Module], Any]) -> tuple[ModuleStream, ...]:
    """The streams whose basis is learned with all weights. `call` calls a module with an example of its inputs."""
    return tuple(
        stream
        for stream in find_module_streams(student, call)
        if is_small_enough(stream.channels, len(list(stream.parameters(student))))
    )


@contextmanager
def bases_learned(student: nn.Module, teacher: Any, streams: Sequence[ModuleStream]) -> Iterator[None]:
    """Makes the bases parameters of the student, and in the end multiplies them into its weights.

    What the student computes stays the same. As in learn_bases() for graphs, the weight of each of the teacher's norms
    moves from the function over into the layers that read it.
    """
    order = {module: list(module._parameters) for stream in streams for module, *_ in stream.parameters(student)}
    made = [_learned(student, teacher, stream) for stream in streams]
    try:
        yield
    finally:
        for basis, _ in made:
            basis.forget()  # the last pass came before the last step
        for stream in streams:
            for module, name, *_ in stream.parameters(student):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
                parameter = getattr(module, name)
                parameter.data = parameter.data.contiguous()
        for module, names in order.items():
            for name in names:  # they came back in another order than the model's optimisers may know
                module._parameters[name] = module._parameters.pop(name)
        for _, handle in made:
            handle.remove()


def learned_bases(student: nn.Module) -> dict[str, nn.Parameter]:
    """The bases that are parameters of a student at the time, by their names in it."""
    return {
        f"{path}.change": module.change for path, module in student.named_modules() if isinstance(module, LearnedBasis)
    }


class _Turned(nn.Module):
    """A weight in the basis as it is now."""

    def __init__(self, basis: LearnedBasis, axis: int, written: bool) -> None:
        super().__init__()
        self.basis, self.axis, self.written = basis, axis, written

    def forward(self, weight: Tensor) -> Tensor:
        return self.basis.turned(weight, self.axis, written=self.written)


def _learned(student: nn.Module, teacher: Any, stream: ModuleStream) -> tuple[LearnedBasis, RemovableHandle]:
    """Registers one basis; returns it, and the handle of what renews it before every pass."""
    _move_scales(student, teacher, stream)
    places = list(stream.parameters(student))
    weight = getattr(places[0][0], places[0][1])
    basis = LearnedBasis(stream.channels).to(weight.device)
    for module, name, axis, writes in places:
        parametrize.register_parametrization(module, name, _Turned(basis, axis, writes))
        basis.forget()  # registering computes the weight once, without gradients
    return basis, student.register_forward_pre_hook(lambda module, inputs: basis.forget())


def _move_scales(student: nn.Module, teacher: Any, stream: ModuleStream) -> None:
    """The weights of the teacher's norms, where it is a module that has them at the same paths."""
    norms = dict(teacher.named_modules()) if isinstance(teacher, nn.Module) else {}
    for path, readers in stream.readers.items():
        norm = recognise(norms[path]) if path in norms else None
        if not isinstance(norm, Norm):
            continue
        function = student.get_submodule(path)
        behind = [(student.get_submodule(reader).weight, READING_AXIS) for reader in readers]
        move_weight(norm.weight, [function.weight, function.bias], behind)

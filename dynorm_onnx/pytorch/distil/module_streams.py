"""Streams of a PyTorch model: which layers write into what replaced norms read, found and proven on a probe.

No graph is drawn. A layer writes into what a norm reads if, with all other layers and norms cut off, the gradient of
the norm's input with respect to the layer's output is the identity, times a number. A layer reads a norm if it is
called with what the norm gave. That nothing else writes or reads is then proven: with lines in the place of the
functions, the model must give the same outputs in another basis of the stream.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dynorm_onnx.pytorch.distil.losses import named_outputs
from dynorm_onnx.pytorch.modules import evaluating, places, swapped
from dynorm_onnx.pytorch.nn import ElementwiseNorm

log = logging.getLogger(__name__)

_AXES = {nn.Linear: 0, nn.Embedding: 1}  # of the weight over what the layer gives
READING_AXIS = 1  # of a Linear's weight over what it reads
_PROPORTIONAL = 1e-4  # relative; gradients of sums are exact but for the model's own type
_SAME_OUTPUTS = 1e-2  # relative; a reader or writer that was missed changes outputs by about _TURN
_TURN = 0.3  # how far the basis of the proof is from the identity


@dataclasses.dataclass(frozen=True)
class ModuleStream:
    """A stream of a model whose basis can be chosen: paths of modules.

    `writers` are Linear and Embedding layers; `readers` are the Linear layers behind each replaced norm, by its path.
    """

    channels: int
    writers: tuple[str, ...]
    readers: Mapping[str, tuple[str, ...]]

    def parameters(self, model: nn.Module) -> Iterator[tuple[nn.Module, str, int, bool]]:
        """What lies at the stream: (module, name of its parameter, axis over the channels, whether it writes)."""
        for path in self.writers:
            module = model.get_submodule(path)
            yield module, "weight", _axis(module), True
            if getattr(module, "bias", None) is not None:
                yield module, "bias", 0, True
        for path in dict.fromkeys(path for paths in self.readers.values() for path in paths):
            yield model.get_submodule(path), "weight", READING_AXIS, False


def find_module_streams(model: nn.Module, call: Callable[[nn.Module], Any]) -> tuple[ModuleStream, ...]:
    """The streams that replaced norms (ElementwiseNorm) read and whose basis can be chosen; why not is logged.

    `call` calls a module that it is given, such as `model`, with an example of its inputs. The model is left as it was.
    """
    with evaluating(model):
        probe = _Probe(model, call)
        found = []
        for stream in probe.streams():
            obstacle = _shared(model, stream) or _proof(model, call, stream, probe.slopes)
            if obstacle is None:
                found.append(stream)
            else:
                log.info("the basis of the stream that %s reads stays: %s", next(iter(stream.readers)), obstacle)
    return tuple(found)


class _Line(nn.Module):
    """Stands for a function: y = slope x, the slope what keeps y about as large as a norm's output."""

    def __init__(self, slope: float | None, cut: bool) -> None:
        super().__init__()
        self.slope, self.cut = slope, cut
        self.x: Tensor | None = None
        self.y: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.slope is None:
            self.slope = 1 / max(float(x.detach().float().square().mean().sqrt()), 1e-6)
        self.x = x
        y = self.slope * x
        self.y = y.detach() if self.cut else y
        return self.y


class _Probe:
    """One forward pass with every function a line whose output is cut off, and what was seen in it."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module], Any]) -> None:
        self._outputs: dict[str, Tensor] = {}
        self._inputs: list[tuple[str, Tensor]] = []
        lines: dict[str, _Line] = {}

        def line(path: str, module: nn.Module) -> nn.Module | None:
            if isinstance(module, ElementwiseNorm):
                return lines.setdefault(path, _Line(None, cut=True))
            return None

        with swapped(model, line), ExitStack() as hooks, torch.enable_grad():
            for module, (path, *_) in places(model).items():
                if isinstance(module, nn.Linear | nn.Embedding):
                    hooks.callback(module.register_forward_hook(self._seen(path)).remove)
            call(model)
        self._lines = {path: line for path, line in lines.items() if line.x is not None}
        self.slopes = {path: line.slope for path, line in self._lines.items() if line.slope is not None}

    def streams(self) -> Iterator[ModuleStream]:
        """Norms that are written by layers in common read one stream."""
        written = {path: writers for path in self._lines if (writers := self._writers(path))}
        left = list(written)
        while left:
            norms = [left.pop(0)]
            writers = set(written[norms[0]])
            while more := [path for path in left if writers & written[path]]:
                norms += more
                writers.update(*(written[path] for path in more))
                left = [path for path in left if path not in more]
            x = self._lines[norms[0]].x
            assert x is not None
            yield ModuleStream(x.shape[-1], tuple(sorted(writers)), {path: self._readers(path) for path in norms})

    def _seen(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            if isinstance(module, nn.Linear) and inputs:
                self._inputs.append((path, inputs[0]))
            self._outputs[path] = output.detach().requires_grad_()
            return self._outputs[path]

        return hook

    def _writers(self, norm: str) -> set[str]:
        """The layers whose outputs are summands of the norm's input; none where one comes into it in another way."""
        x = self._lines[norm].x
        if x is None or not x.requires_grad:
            return set()
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        gradients = torch.autograd.grad(x, [*self._outputs.values()], direction, retain_graph=True, allow_unused=True)
        found = {path: g for path, g in zip(self._outputs, gradients, strict=True) if g is not None}
        return set(found) if all(_proportional(gradient, direction) for gradient in found.values()) else set()

    def _readers(self, norm: str) -> tuple[str, ...]:
        y = self._lines[norm].y
        assert y is not None
        return tuple(dict.fromkeys(path for path, x in self._inputs if _same_tensor(x, y)))


def _proof(
    model: nn.Module, call: Callable[[nn.Module], Any], stream: ModuleStream, slopes: Mapping[str, float]
) -> str | None:
    """Why the stream's basis cannot be chosen, or None: the outputs before and after another one was."""

    def line(path: str, module: nn.Module) -> nn.Module | None:
        return _Line(slopes[path], cut=False) if path in stream.readers else None

    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(stream.channels, stream.channels, generator=generator, dtype=torch.float64)
    matrix = torch.eye(stream.channels, dtype=torch.float64) + _TURN * noise / stream.channels**0.5
    with torch.no_grad(), swapped(model, line):
        before = named_outputs(call(model))
        with _turned(model, stream, matrix):
            after = named_outputs(call(model))
    for name, output in before.items():
        difference = float((after[name].double() - output.double()).norm() / output.double().norm().clamp(min=1e-30))
        if not difference < _SAME_OUTPUTS:
            return f"it is written or read elsewhere too (in another basis {name!r} differs by {difference:.2g})"
    return None


@contextmanager
def _turned(model: nn.Module, stream: ModuleStream, matrix: Tensor) -> Iterator[None]:
    back = torch.linalg.inv(matrix).T
    kept = []
    for module, name, axis, writes in stream.parameters(model):
        parameter = getattr(module, name)
        kept.append((parameter, parameter.detach().clone()))
        change = (matrix if writes else back).to(parameter.device)
        parameter.copy_((parameter.double().movedim(axis, -1) @ change).movedim(-1, axis))
    try:
        yield
    finally:
        for parameter, value in kept:
            parameter.copy_(value)


def _shared(model: nn.Module, stream: ModuleStream) -> str | None:
    """Why, where a weight at the stream belongs to two modules or a layer lies there twice."""
    owners: dict[int, set[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(path)
    seen: set[int] = set()
    for module, name, _, _ in stream.parameters(model):
        parameter = getattr(module, name)
        if id(parameter) in seen or len(owners[id(parameter)]) > 1:
            return f"the weight {min(owners[id(parameter)])!r} is used elsewhere too"
        seen.add(id(parameter))
    return None


def _proportional(gradient: Tensor, direction: Tensor) -> bool:
    if gradient.shape != direction.shape:
        return False
    factor = (gradient * direction).sum() / direction.square().sum()
    return bool(factor != 0 and (gradient - factor * direction).norm() <= _PROPORTIONAL * gradient.norm())


def _same_tensor(one: Any, other: Tensor) -> bool:
    return isinstance(one, Tensor) and one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


def _axis(module: nn.Module) -> int:
    return next(axis for kind, axis in _AXES.items() if isinstance(module, kind))

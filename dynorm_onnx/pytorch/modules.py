"""Walking a model's modules by name, and putting others in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import nn

from dynorm_onnx.pytorch.inherit import inherit


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` what `model` has under the dotted path `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def places(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module below `model` with all the paths that lead to it: a shared module has several."""
    found: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name:
            found.setdefault(module, []).append(name)
    return found


def swapped_for_good(model: nn.Module, stand_in: Callable[[nn.Module], nn.Module | None]) -> list[str]:
    """Put stand_in(module) in the place of each module for which it is not None, with the hooks that are on it and as
    frozen as it is; returns the first path of each."""
    done: list[str] = []
    for module, names in places(model).items():
        if any(_is_below(names[0], above) for above in done):
            continue
        other = stand_in(module)
        if other is not None:
            done.append(names[0])
            inherit(other, module)
            for name in names:
                put(model, name, other)
    return done


@contextlib.contextmanager
def swapped(model: nn.Module, stand_in: Callable[[str, nn.Module], nn.Module | None]) -> Iterator[None]:
    """Put stand_in(name, module) in the place of each module for which it is not None; put all back afterwards.

    `model` itself must not be one of them.
    """
    originals: list[tuple[str, nn.Module]] = []
    try:
        for module, names in places(model).items():
            if any(_is_below(names[0], done) for done, _ in originals):
                continue
            other = stand_in(names[0], module)
            if other is not None:
                for name in names:
                    originals.append((name, module))
                    put(model, name, other)
        yield
    finally:
        for name, module in originals:
            put(model, name, module)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards for each module the mode that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _is_below(name: str, above: str) -> bool:
    return name.startswith(f"{above}.")

"""Which modules of a PyTorch model are norms, told by what they compute; independent of how a graph is searched."""

from __future__ import annotations

from typing import Any

import torch

AGREES = 1e-4  # relative; what a float32 norm may differ by from the definition without its epsilon
TOKENS = 64


def running_norms(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.nn.Module]:
    """The norms in the order in which they run on these inputs; one that runs twice is there twice."""
    found: list[torch.nn.Module] = []
    verdicts: dict[torch.nn.Module, bool] = {}

    def look(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        if module not in verdicts:
            verdicts[module] = _is_norm(module, args, kwargs)
        if verdicts[module]:
            found.append(module)

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(look, with_kwargs=True) for leaf in leaves]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def randomise(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], seed: int = 0) -> None:
    """Draws all weights anew, in place: matrices of a size that keeps signals alive, norms away from 1 and 0."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=random))
        for norm in dict.fromkeys(running_norms(model, inputs)):
            for parameter in norm.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))


def _is_norm(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of a module gives an affine map, channel by channel, of its normalised input.

    The module is called anew with random tokens of very different sizes, since on the tokens at hand other
    functions might look alike. With a second input that acts as a gate, both orders are tried.
    """
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    if not 1 <= len(tensors) <= 2 or any(t.shape != tensors[0].shape or not t.dim() for t in tensors):
        return False
    random = torch.Generator().manual_seed(0)
    probes = [torch.randn(TOKENS, tensors[0].shape[-1], generator=random) for _ in tensors]
    probes[0] *= torch.logspace(0, 2, TOKENS)[:, None]  # large enough for any epsilon not to matter
    fresh = iter(probes)
    probed_args = [next(fresh) if isinstance(arg, torch.Tensor) else arg for arg in args]
    probed_kwargs = {key: next(fresh) if isinstance(arg, torch.Tensor) else arg for key, arg in kwargs.items()}
    try:
        with torch.no_grad():
            y = module.forward(*probed_args, **probed_kwargs)
    except (RuntimeError, ValueError, IndexError):  # a module that works on more axes than tokens and channels
        return False
    if not isinstance(y, torch.Tensor) or y.shape != probes[0].shape:
        return False
    if len(probes) == 1:
        return _is_affine_in_normalised(probes[0], y)
    x, gate = probes[0], torch.nn.functional.silu(probes[1])
    return _is_affine_in_normalised(x * gate, y) or _is_affine_in_normalised(x, y / gate)


def _is_affine_in_normalised(x: torch.Tensor, y: torch.Tensor) -> bool:
    x, y = x.double(), y.double()
    centred = x - x.mean(-1, keepdim=True)
    return any(_is_affine(n / n.square().mean(-1, keepdim=True).sqrt(), y) for n in (x, centred))


def _is_affine(normalised: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether y[:, c] = slope[c] * normalised[:, c] + offset[c], by least squares."""
    n, t = normalised - normalised.mean(0), y - y.mean(0)
    slope = (n * t).sum(0) / n.square().sum(0)
    return bool((t - slope * n).norm() <= AGREES * t.norm()) and bool(t.norm() > 0)

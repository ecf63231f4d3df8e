"""Fitting the replacements of a model's norms on data: what calibration.norms does for ONNX files, by hooks.

Norm by norm in the order in which the model calls them, on the activations of the *already converted*
model, towards the norm's output in the *original*. Both run side by side in lockstep; what is alive in
a pass at a norm (the residual stream, the attention mask, ...) is held for every batch of the data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dynorm_onnx.calibration.norms.coupling import squared_lengths
from dynorm_onnx.calibration.norms.fit import Fit
from dynorm_onnx.calibration.norms.fit_rows import Leeway, fit_rows
from dynorm_onnx.calibration.norms.leeway import leeways_of
from dynorm_onnx.calibration.norms.massive import LOOKED_AT, has_sinks
from dynorm_onnx.calibration.norms.rows import Rows
from dynorm_onnx.calibration.stages.held_out import HeldOut, held_out_samples
from dynorm_onnx.calibration.stages.weights import token_weights
from dynorm_onnx.errors import DataError
from dynorm_onnx.functions import Function
from dynorm_onnx.progress import Progress, no_progress
from dynorm_onnx.pytorch.lockstep import Pass, run_in_lockstep
from dynorm_onnx.pytorch.modules import evaluating
from dynorm_onnx.pytorch.norms import Norm

Batch = Any
"""What one forward pass takes: a tensor, a tuple of arguments, or a mapping of keyword arguments."""

_IDS, _MASK = "input_ids", "attention_mask"
_SAME_LOGITS = 1e-3  # relative: what the rounding of half precision may change


@dataclasses.dataclass(frozen=True)
class _Call:
    """What a norm was given and what it should give: x [..., C] and target, without any gate behind the norm."""

    x: torch.Tensor
    target: torch.Tensor


def fit_norms(
    model: nn.Module,
    norms: Mapping[str, Norm],
    function: Function,
    data: Iterable[Batch],
    make: Callable[[str, Fit], nn.Module],
    progress: Progress = no_progress,
    coupled: int | None = 0,
) -> dict[str, tuple[Fit, nn.Module]]:
    """The fit of every norm that the data reaches, with the module that make(name, fit) returned for it.

    The model is run in eval mode without gradients and not changed. A norm that a pass calls several times
    is fitted on all its calls in the original. `coupled` channels of each norm may stay in its sum; None for as many as
    the model needs (calibration.leeway). Raises DataError where there is no data.
    """
    batches = [_on_device(batch, model) for batch in data]
    if not batches:
        raise DataError("data holds no batch: nothing can be fitted")
    done: dict[str, tuple[Fit, nn.Module]] = {}
    with evaluating(model), torch.no_grad():
        calls = _count_calls(model, norms, batches[0])
        causal = _is_causal(model, batches[0])
        tokens = _Tokens(
            [_token_weights(batch, causal) for batch in batches], held_out_samples([_arrays(b) for b in batches])
        )
        massive = _massive(model, {name: norms[name] for name in calls}, batches, tokens)
        leeway = leeways_of(coupled, massive, {name: norms[name].channels for name in calls})
        often = [name for name, count in calls.items() if count > 1]
        for name in often:
            norm = norms[name]
            fitted = _fit(function, norm, leeway[name], lambda n=norm: _original_calls(model, n, batches, tokens))  # type: ignore[misc]
            done[name] = (fitted, make(name, fitted))
        once = {name: norms[name] for name, count in calls.items() if count == 1}

        def deal_with(name: str, items: Mapping[int, _Call]) -> None:
            pairs = _pairs(items, tokens)
            if pairs:
                fitted = _fit(function, norms[name], leeway[name], lambda: iter(pairs))
                done[name] = (fitted, make(name, fitted))
            progress("calibrate", len(done), len(calls))

        with _hooked(norms, done, once):
            works = [functools.partial(_run_pass, model, b, role) for b in batches for role in (_ORIGINAL, _CONVERTED)]
            run_in_lockstep(works, deal_with)
    return done


_ORIGINAL, _CONVERTED = "original", "converted"


class _Role(threading.local):
    """Which pass the current thread makes, and through which of the two models."""

    current: Pass | None = None
    name: str = _ORIGINAL


_role = _Role()


def _run_pass(model: nn.Module, batch: Batch, role: str, current: Pass) -> None:
    _role.current, _role.name = current, role
    with torch.no_grad():
        _call(model, batch)


@contextlib.contextmanager
def _hooked(
    norms: Mapping[str, Norm], done: Mapping[str, tuple[Fit, nn.Module]], once: Mapping[str, Norm]
) -> Iterator[None]:
    """Every norm stops its pass until it is fitted; in the converted model it then gives its replacement's output.

    Before any hook that the user put on the norm: those will work on what the replacement gives.
    """

    def hook(name: str, norm: Norm) -> Any:
        def after(module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> torch.Tensor | None:
            if _role.current is None:
                return None
            if name in once and name not in done:
                _role.current.stop(name, _observed(norm, args, kwargs, output))
            if _role.name == _ORIGINAL or name not in done:
                return None
            return done[name][1](*args, **kwargs)

        return norm.module.register_forward_hook(after, prepend=True, with_kwargs=True)

    with contextlib.ExitStack() as hooks:
        for name, norm in norms.items():
            hooks.callback(hook(name, norm).remove)
        yield


def _observed(norm: Norm, args: tuple, kwargs: dict, output: torch.Tensor) -> _Call:
    x, *rest = [*args, *kwargs.values()]
    if norm.gate is None or not rest or rest[0] is None:
        return _Call(x, output)
    if norm.gate == "before":
        return _Call(x.float() * functional.silu(rest[0].float()), output)
    return _Call(x, norm.of(x))


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """By batch, the weights of its tokens and which of its samples are held out."""

    weights: Sequence[np.ndarray | None]
    held_out: Sequence[HeldOut | None]

    def rows(self, batch: int, x: torch.Tensor, target: torch.Tensor) -> Rows:
        return Rows.of(_numpy(x), _numpy(target), self.weights[batch], self.held_out[batch])


def _pairs(items: Mapping[int, _Call], tokens: _Tokens) -> list[Rows]:
    """The batches that are here in both models, with the same tokens: the converted x, the original's output."""
    pairs: list[Rows] = []
    for batch in range(len(tokens.weights)):
        original, converted = items.get(2 * batch), items.get(2 * batch + 1)
        if original is not None and converted is not None and original.x.shape == converted.x.shape:
            pairs.append(tokens.rows(batch, converted.x, original.target))
    return pairs


def _fit(function: Function, norm: Norm, leeway: Leeway, batches: Callable[[], Iterator[Rows]]) -> Fit:
    return fit_rows(function, norm.kind, norm.epsilon, batches, leeway)


def _massive(model: nn.Module, norms: Mapping[str, Norm], batches: Sequence[Batch], tokens: _Tokens) -> set[str]:
    """The norms that see sinks in the first few batches."""
    squares: dict[str, list[np.ndarray]] = defaultdict(list)
    place = 0

    def hook(name: str, norm: Norm) -> Any:
        def after(module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
            call = _observed(norm, args, kwargs, output)
            rows = tokens.rows(place, call.x, call.target)
            squares[name].append(squared_lengths(norm.kind, norm.epsilon, rows.x))

        return norm.module.register_forward_hook(after, prepend=True, with_kwargs=True)

    with contextlib.ExitStack() as hooks:
        for name, norm in norms.items():
            hooks.callback(hook(name, norm).remove)
        for place, batch in enumerate(batches[:LOOKED_AT]):  # noqa: B007 - read by the hooks
            _call(model, batch)
    return {name for name, found in squares.items() if has_sinks(name, found)}


def _original_calls(model: nn.Module, norm: Norm, batches: Sequence[Batch], tokens: _Tokens) -> Iterator[Rows]:
    """All calls of one norm in the original."""
    calls: list[_Call] = []
    handle = norm.module.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(_observed(norm, args, kwargs, output)),
        prepend=True,
        with_kwargs=True,
    )
    try:
        for place, batch in enumerate(batches):
            _call(model, batch)
            yield from (tokens.rows(place, call.x, call.target) for call in calls)
            calls.clear()
    finally:
        handle.remove()


def _count_calls(model: nn.Module, norms: Mapping[str, Norm], batch: Batch) -> dict[str, int]:
    """How often one pass calls each norm, in the order of first calls; norms that it does not reach are missing."""
    counts: Counter[str] = Counter()
    handles = [
        norm.module.register_forward_hook(lambda *_, n=name: counts.update([n]))  # type: ignore[misc]
        for name, norm in norms.items()
    ]
    try:
        _call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return dict(counts)


def _arrays(batch: Batch) -> dict[str, np.ndarray]:
    """The tensors of a batch, of which only the sizes are asked."""
    tensors = batch.values() if isinstance(batch, Mapping) else [batch] if isinstance(batch, torch.Tensor) else batch
    return {str(i): np.empty(tuple(t.shape), np.bool_) for i, t in enumerate(tensors) if isinstance(t, torch.Tensor)}


def _token_weights(batch: Batch, causal: bool) -> np.ndarray | None:
    ids = _token_ids(batch)
    if ids is None:
        return None
    feeds = {_IDS: ids.cpu().numpy()}
    if isinstance(batch, Mapping) and isinstance(batch.get(_MASK), torch.Tensor):
        feeds[_MASK] = batch[_MASK].cpu().numpy()
    return token_weights(feeds, _IDS, causal=causal)


def _token_ids(batch: Batch) -> torch.Tensor | None:
    """The token ids [B, T] of a batch: named so, or its only or first tensor if that is an integer matrix."""
    ids = batch.get(_IDS) if isinstance(batch, Mapping) else batch if isinstance(batch, torch.Tensor) else batch[0]
    if isinstance(ids, torch.Tensor) and ids.ndim == 2 and not ids.is_floating_point():
        return ids
    return None


def _is_causal(model: nn.Module, batch: Batch) -> bool:
    """Whether what the model says of a token [B, T, ...] ignores the tokens after it: the last one is changed."""
    ids = _token_ids(batch)
    if ids is None or ids.shape[1] < 2:
        return False
    changed = ids.clone()
    changed[:, -1] = torch.where(ids[:, -1] == 0, 1, 0)
    before, after = _rows(_call(model, batch), ids), _rows(_call(model, _with_ids(batch, changed)), ids)
    if before is None or after is None:
        return False
    before, after = before[:, :-1].double(), after[:, :-1].double()
    return bool((after - before).norm() <= _SAME_LOGITS * before.norm())


def _rows(output: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """The first float tensor of an output that has a row for every token."""
    values = (
        output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else [output]
    )
    for value in values:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape[:-1] == ids.shape:
            return value
    return None


def _with_ids(batch: Batch, ids: torch.Tensor) -> Batch:
    if isinstance(batch, Mapping):
        return {**batch, _IDS: ids}
    return ids if isinstance(batch, torch.Tensor) else (ids, *batch[1:])


def _call(model: nn.Module, batch: Batch) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch) if isinstance(batch, torch.Tensor) else model(*batch)


def _on_device(batch: Batch, model: nn.Module) -> Batch:
    """The batch where the model's first parameter is. Raises DataError for what is no batch."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    if isinstance(batch, torch.Tensor):
        return moved(batch)
    if isinstance(batch, Mapping):
        return {name: moved(value) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(moved(value) for value in batch)
    raise DataError(
        f"a batch must be a tensor, a tuple or a mapping of the model's arguments, not {type(batch).__name__}"
    )


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(device="cpu", dtype=torch.float64).numpy()

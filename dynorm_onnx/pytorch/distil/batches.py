"""Batches of a distillation: what one forward pass takes, whatever its form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from dynorm_onnx.errors import UsageError
from dynorm_onnx.pytorch.distil.losses import MASK

Batch = Any
"""A tensor, a tuple of arguments, or a mapping of keyword arguments."""

_IDS = "input_ids"


def called(model: Callable[..., Any], batch: Batch) -> Any:
    """What the model gives for a batch."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    return _each(batch, lambda tensor: tensor.to(device))


def share_of(batch: Batch, rank: int, world: int) -> Batch:
    """The rows of a batch that one of `world` processes takes: every world-th, from `rank` on.

    Tensors that do not have a row for each of the first tensor's stay whole. Raises UsageError where there are fewer
    rows than processes.
    """
    if world == 1:
        return batch
    rows = _rows(batch)
    if rows < world:
        raise UsageError(f"a batch of {rows} rows cannot be shared by {world} processes: give larger batches")
    return _each(batch, lambda tensor: tensor[rank::world] if tensor.ndim and len(tensor) == rows else tensor)


def tokens_of(batch: Batch) -> int:
    """How many tokens, padding not counted; 0 where the batch holds no token ids."""
    if not isinstance(batch, Mapping):
        return int(batch.numel()) if isinstance(batch, torch.Tensor) and not batch.is_floating_point() else 0
    ids, mask = batch.get(_IDS), batch.get(MASK)
    if ids is None:
        return 0
    return int(mask.count_nonzero()) if mask is not None and mask.shape == ids.shape else int(ids.numel())


def _rows(batch: Batch) -> int:
    """Of the first tensor."""
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    return next((len(item) for item in items if isinstance(item, torch.Tensor) and item.ndim), 0)


def _each(batch: Batch, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    if isinstance(batch, Mapping):
        return {name: _each(item, change) for name, item in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_each(item, change) for item in batch)
    return change(batch) if isinstance(batch, torch.Tensor) else batch

"""Several processes that train together, as torchrun starts them: each takes its share of every batch's rows.

Every process holds all weights. Sums over tokens are made over all processes before anything is divided by them, and
gradients are added up, so that the steps are those of one process, to rounding.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, distributed, nn

LARGEST_BUCKET = 1 << 24
"""Elements of gradients that are sent together."""


def join_processes(device: torch.device) -> None:
    """Joins the processes that torchrun started, if it did and nobody has joined them yet, until the program ends.

    Not for each training anew: who joins a second time may be told where the others were the first time, and waits.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0 on."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def summed(values: Tensor) -> Tensor:
    """The sum over all processes."""
    if world() > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def share_first(tensors: Iterable[Tensor]) -> None:
    """Gives all processes what the first one has."""
    if world() == 1:
        return
    with torch.no_grad():
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            distributed.broadcast(whole, 0)
            tensor.copy_(whole)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Adds the gradients of all processes up; what a process has no gradient for counts as zero there."""
    if world() == 1:
        return
    for bucket in _buckets(parameters):
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
        together = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(together)
        parts = together.split([gradient.numel() for gradient in gradients])
        for parameter, part in zip(bucket, parts, strict=True):
            parameter.grad = part.reshape(parameter.shape).clone()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        full = bucket and sum(p.numel() for p in bucket) + parameter.numel() > LARGEST_BUCKET
        if full or (bucket and parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket

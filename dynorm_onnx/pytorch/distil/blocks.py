"""Block by block: each block of a converted graph is trained by itself, towards the original's stream behind it.

A step takes the memory and the time of one block, and is told what that block has to give, not only what came of it
many blocks later. A block is given what the blocks before it give in the converted model, as they are after their own
training, so that it makes up for what they have left. The original runs once over each text.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynorm_onnx.errors import ModelError
from dynorm_onnx.pytorch.distil.batches import moved, share_of
from dynorm_onnx.pytorch.distil.losses import MASK, Term, total
from dynorm_onnx.pytorch.distil.optimizer import Trained, make_optimizers, set_rates, trained_parameters
from dynorm_onnx.pytorch.distil.parallel import rank, share_first, sum_gradients, summed, world
from dynorm_onnx.pytorch.distil.trainer import LARGEST_GRADIENT, only_these_learn
from dynorm_onnx.pytorch.graph import GraphModule
from dynorm_onnx.pytorch.graph.blocks import Block

log = logging.getLogger(__name__)

TOKENS = 65_536
"""How many tokens the blocks are trained on: the stream of all of them is held, in both models."""

Feeds = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class BlockRun:
    """What the training of one block did: the mean relative squared error of a token before and after."""

    border: str
    before: float
    after: float


@dataclasses.dataclass(frozen=True)
class BlockProgress:
    """What is told after each block."""

    done: int
    blocks: int
    run: BlockRun
    seconds_left: float


@dataclasses.dataclass(frozen=True)
class Blockwise:
    """How blocks are trained: `steps` for each, with the rates of distil()."""

    steps: int
    learning_rate: float
    norm_learning_rate: float
    train: str
    precision: str
    seed: int


def train_blocks(
    student: GraphModule,
    original: GraphModule,
    data: Sequence[Feeds],
    how: Blockwise,
    progress: Callable[[BlockProgress], None],
) -> tuple[BlockRun, ...]:
    """Trains the blocks of `student`, in place, one after the other; both models where they are.

    `original` computes the same graph but for its norms: borders of blocks are values of the same name in both. Of
    `data`, batches of about TOKENS tokens are used. Raises ModelError where the loss is not finite.
    """
    made = {name for step in original.program.steps for name in step.outputs if name is not None}
    parts = student.blocks(made)
    trained = {t.name: t for t in trained_parameters(student, how.train)}
    device = next(student.parameters()).device
    share_first(student.parameters())
    batches = [moved(share_of(feeds, rank(), world()), device) for feeds in _first(data)]
    ours, theirs = ([dict(feeds) for feeds in batches] for _ in range(2))
    masks = [feeds.get(MASK) for feeds in batches]
    started, place = time.monotonic(), 0
    runs: list[BlockRun] = []
    for block in parts:
        behind = original.place_of(block.border)
        theirs = [_passed(original, state, place, behind, "float32") for state in theirs]
        place = behind
        targets = [state[block.border] for state in theirs]
        before = _error([_passed(student, state, block.start, block.stop, how.precision) for state in ours],
                        targets, masks, block)  # fmt: skip
        own = [trained[name] for name in sorted(block.weights) if name in trained]
        _train_block(student, block, own, list(zip(ours, targets, masks, strict=True)), how)
        ours = [_passed(student, state, block.start, block.stop, how.precision) for state in ours]
        runs.append(BlockRun(block.border, before, _error(ours, targets, masks, block)))
        left = (time.monotonic() - started) / len(runs) * (len(parts) - len(runs))
        progress(BlockProgress(len(runs), len(parts), runs[-1], left))
    return tuple(runs)


def _train_block(
    student: GraphModule,
    block: Block,
    trained: Sequence[Trained],
    examples: Sequence[tuple[Mapping[str, Any], Tensor, Tensor | None]],
    how: Blockwise,
) -> None:
    """`examples` are what is given to the block, what it should leave, and the mask of each batch."""
    device = examples[0][1].device
    computes = torch.bfloat16 if how.precision == "bfloat16" else torch.float32
    optimizers = make_optimizers(trained, how.learning_rate, how.norm_learning_rate, computes)
    parameters: list[nn.Parameter] = [t.parameter for t in trained]
    rng = np.random.default_rng([how.seed, block.start])
    with only_these_learn(student, trained):
        for step in range(how.steps):
            if step % len(examples) == 0:
                order = rng.permutation(len(examples))
            state, target, mask = examples[order[step % len(examples)]]
            set_rates(optimizers, step, how.steps)
            with _autocast(device, how.precision):
                y = student.run_until(state, block.start, block.stop)[block.border]
            loss = total([stream_error(y, target, mask)], summed)
            if not math.isfinite(value := float(summed(loss.detach()))):
                raise ModelError(
                    f"the loss of the block before {block.border!r} is {value} at step {step + 1}: try a smaller "
                    "learning rate, or float32"
                )
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            sum_gradients(parameters)
            nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
            for optimizer in optimizers:
                optimizer.step()


@torch.no_grad()
def _passed(model: GraphModule, state: Mapping[str, Any], start: int, stop: int, precision: str) -> dict[str, Any]:
    """What a part of the model makes of what was left before it."""
    with _autocast(next(model.parameters()).device, precision):
        return model.run_until(state, start, stop)


def _error(
    states: Sequence[Mapping[str, Any]], targets: Sequence[Tensor], masks: Sequence[Tensor | None], block: Block
) -> float:
    """stream_error() over all batches of all processes."""
    terms = [stream_error(state[block.border], *other) for state, *other in zip(states, targets, masks, strict=True)]
    wrong, over = summed(torch.stack([torch.stack([term.wrong, term.over]) for term in terms]).sum(0)).tolist()
    return float(wrong / max(over, 1e-12))


def stream_error(y: Tensor, target: Tensor, mask: Tensor | None) -> Term:
    """The mean over tokens of the squared error relative to the token's own size, [batch, length, C].

    Not to the size of all: where a few tokens are massive, nothing else would count.
    """
    wide, wanted = y.float(), target.float()
    errors = (wide - wanted).square().sum(-1) / wanted.square().sum(-1).clamp(min=1e-12)
    weights = mask.to(errors) if mask is not None and mask.shape == errors.shape else torch.ones_like(errors)
    return Term((weights * errors).sum(), weights.sum())


def _first(data: Sequence[Feeds]) -> list[Feeds]:
    taken, tokens = [], 0
    for feeds in data:
        if tokens >= TOKENS:
            break
        taken.append(feeds)
        tokens += max((t.numel() for t in feeds.values() if t.dtype == torch.int64), default=0)
    return taken


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")

"""Streams whose basis is learned in a distillation: one matrix moves all the weights at a stream together.

What element-wise functions can stand in for depends on how the stream lies to its axes, and no single weight can
turn it. A basis learned with the weights leaves a fifth less KL than the weights alone (docs/distil.md).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch

from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.streams.basis import StreamBasis, find_bases
from dynorm_onnx.pytorch.graph import GraphModule

log = logging.getLogger(__name__)

LARGEST = 1024
"""Channels of a stream up to which its basis is learned. To multiply a basis of C channels out takes C / 2,048 of what
the products of a step of 2,048 tokens take."""

SMALLEST_WEIGHT = 1e-3
"""Of a norm, relative to its largest: a channel with less keeps its weight behind the function."""


def usable_bases(original: ir.Graph, norms: Sequence[LoweredNorm]) -> tuple[StreamBasis, ...]:
    """The streams of a lowered graph whose basis is learned in the model made from it by replacing `norms`.

    None where one of its norms was kept, since that reads the stream too.
    """
    found = []
    for basis in find_bases(original, norms):
        if basis.heads:  # what the student shares it cannot learn twice
            log.info("the basis of a stream of %d channels stays: its head shares the embedding", basis.channels)
        elif is_small_enough(basis.channels, len(basis.writers) + len(basis.readers)):
            found.append(basis)
    return tuple(found)


def is_small_enough(channels: int, weights: int) -> bool:
    """Whether the basis of a stream is learned, by its size; the log tells, with how many weights."""
    if channels > LARGEST:
        log.info("the basis of a stream of %d channels stays: only up to %d it is learned", channels, LARGEST)
        return False
    log.info("the basis of a stream of %d channels is learned, with %d weights", channels, weights)
    return True


@torch.no_grad()
def learn_bases(student: GraphModule, bases: Sequence[StreamBasis], functions: Mapping[str, Mapping[str, str]]) -> None:
    """Makes the bases part of what the student learns; what it computes stays the same.

    The weight of each norm moves from the function that replaced it, over into the layers that read it: as the norm
    itself did, the function then treats all channels alike, which alone makes mixing them a small step.
    `functions` are their initializers by the node's name, by what they are to the function ("weight", "bias").
    """
    for basis in bases:
        for norm, readers in basis.read.items():
            function = functions[str(norm.node.name)]
            move_weight(
                norm.weight,
                [student.parameter(function[role]) for role in ("weight", "bias")],
                [(student.parameter(name), basis.readers[name]) for name in readers],
            )
        student.learn_basis(basis.channels, basis.writers, basis.readers)


@torch.no_grad()
def move_weight(
    weight: np.ndarray, function: Iterable[torch.Tensor], readers: Iterable[tuple[torch.Tensor, int]]
) -> None:
    """Moves a norm's weight [C], where there is more than next to none, out of its function into the layers behind it.

    `function` are weight and bias of the function; `readers` weights of layers, each with its axis over the channels.
    """
    large = np.abs(weight) >= SMALLEST_WEIGHT * np.abs(weight).max()
    scale = np.where(large, weight, 1.0).astype(np.float64)
    for parameter in function:
        _multiply(parameter, 1 / scale, 0)
    for parameter, axis in readers:
        _multiply(parameter, scale, axis)


def _multiply(parameter: torch.Tensor, scale: np.ndarray, axis: int) -> None:
    shape = [1] * parameter.ndim
    shape[axis] = -1
    parameter.mul_(torch.from_numpy(scale).to(parameter).reshape(shape))

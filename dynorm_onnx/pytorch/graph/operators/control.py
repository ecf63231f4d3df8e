"""Conditions, loops and sequences of tensors: run in Python, one body at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dynorm_onnx.pytorch.graph.operators.base import Node, Tensor, numbers, operator

Body = Callable[[Sequence[Any]], list[Any]]
"""Values for a body's inputs -> values of its outputs; what it captures it finds itself."""


@operator("If", host=(0,))
def if_(node: Node, condition: Tensor) -> tuple[Any, ...]:
    """One of two bodies."""
    body: Body = node.get("then_branch" if bool(condition.item()) else "else_branch")
    return tuple(body([]))


@operator("Loop", host=(0, 1))
def loop(node: Node, trips: Tensor | None, condition: Tensor | None, *carried: Any) -> tuple[Any, ...]:
    """Carried values, then what each trip gave out, stacked."""
    body: Body = node.get("body")
    most = int(trips.item()) if trips is not None else None
    going = bool(condition.item()) if condition is not None else True
    state, scans, trip = list(carried), [], 0
    while going and (most is None or trip < most):
        kept, *rest = body([torch.tensor(trip), torch.tensor(True), *state])
        going = bool(kept.item())
        state = rest[: len(state)]
        scans.append(rest[len(state) :])
        trip += 1
    if not scans and node.outputs > len(state):
        raise node.unsupported("a loop without trips whose outputs are stacked")
    return (*state, *(torch.stack(column) for column in zip(*scans, strict=True)))


@operator("Scan")
def scan(node: Node, *inputs: Tensor) -> tuple[Any, ...]:
    """Opset 9 and later: states first, then inputs that are walked through along one axis each."""
    body: Body = node.get("body")
    walked = node.get("num_scan_inputs")
    state, sources = list(inputs[: len(inputs) - walked]), inputs[len(inputs) - walked :]
    axes = node.get("scan_input_axes") or [0] * walked
    back = node.get("scan_input_directions") or [0] * walked
    steps = [
        list(reversed(x.unbind(axis))) if reverse else list(x.unbind(axis))
        for x, axis, reverse in zip(sources, axes, back, strict=True)
    ]
    scans = []
    for items in zip(*steps, strict=True):
        given = body([*state, *items])
        state = given[: len(state)]
        scans.append(given[len(state) :])
    columns = [list(column) for column in zip(*scans, strict=True)]
    to = node.get("scan_output_axes") or [0] * len(columns)
    turned = node.get("scan_output_directions") or [0] * len(columns)
    stacked = (
        torch.stack(list(reversed(column)) if reverse else column, axis)
        for column, axis, reverse in zip(columns, to, turned, strict=True)
    )
    return (*state, *stacked)


@operator("SequenceConstruct")
def sequence_construct(node: Node, *inputs: Tensor) -> tuple[list[Tensor]]:
    """A list of the inputs."""
    return (list(inputs),)


@operator("SequenceEmpty")
def sequence_empty(node: Node) -> tuple[list[Tensor]]:
    """A list of nothing."""
    return ([],)


@operator("SequenceInsert", host=(2,))
def sequence_insert(node: Node, items: list[Tensor], item: Tensor, place: Tensor | None = None) -> tuple[list[Tensor]]:
    """The list with one more, at the end unless said."""
    at = len(items) if place is None else int(place.item()) % (len(items) + 1)
    return ([*items[:at], item, *items[at:]],)


@operator("SequenceAt", host=(1,))
def sequence_at(node: Node, items: list[Tensor], place: Tensor) -> Tensor:
    """One of the list."""
    return items[int(place.item())]


@operator("SequenceLength")
def sequence_length(node: Node, items: list[Tensor]) -> Tensor:
    """How many there are."""
    return torch.tensor(len(items))


@operator("SplitToSequence", host=(1,))
def split_to_sequence(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[list[Tensor]]:
    """Pieces of one axis: of the sizes given, or single slices."""
    axis = node.get("axis", 0)
    if sizes is None:
        pieces = torch.split(x, 1, axis)
        return ([piece if node.get("keepdims", 1) else piece.squeeze(axis) for piece in pieces],)
    return (list(torch.split(x, int(sizes.item()) if sizes.ndim == 0 else numbers(sizes), axis)),)


@operator("ConcatFromSequence")
def concat_from_sequence(node: Node, items: list[Tensor]) -> Tensor:
    """The list joined along an axis, or along a new one."""
    axis = node.get("axis")
    return torch.stack(items, axis) if node.get("new_axis", 0) else torch.cat(items, axis)

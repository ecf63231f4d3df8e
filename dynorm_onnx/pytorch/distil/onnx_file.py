"""Distillation of a converted ONNX model: the graph runs in PyTorch, the original in ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from dynorm_onnx.functions import DOMAIN, REGISTRY, NormParameters
from dynorm_onnx.pytorch.distil.teacher import session_teacher
from dynorm_onnx.pytorch.distil.trainer import Distillation, StepProgress, distil
from dynorm_onnx.pytorch.graph import GraphModule
from dynorm_onnx.pytorch.graph.tensors import array_to_torch
from dynorm_onnx.runtime.arrays import Feeds

CHECKPOINTING_ABOVE = 4 << 30
"""Bytes of activations of one batch above which blocks keep only their borders and are computed again."""


@dataclasses.dataclass(frozen=True)
class Distilled:
    """What came out: parameters by the name of the norm's node, other weights by initializer in their own types."""

    run: Distillation
    parameters: Mapping[str, NormParameters]
    initializers: Mapping[str, np.ndarray]


def distil_model(
    converted: ir.Model,
    original: Any,
    batches: Sequence[Feeds],
    *,
    steps: int,
    train: str,
    logits: str | None,
    checkpoint: Path | None,
    seed: int,
    progress: Callable[[StepProgress], None],
) -> Distilled:
    """Train a model whose norms are `dynorm` nodes towards its original.

    Args:
        converted: not changed; computed in float32 whatever its types.
        original: a session of ONNX Runtime.
        batches: feeds of both.
        logits: the name of the output of logits, if there is one.
        steps, train, checkpoint, seed, progress: as distil() has them.

    Raises what distil() raises, and ModelError for an operator that PyTorch has no counterpart of here.
    """
    student = GraphModule(converted, float_type=torch.float32)
    data = [{name: array_to_torch(array) for name, array in feeds.items()} for feeds in batches]
    student.checkpointing = student.activation_bytes(data[0]) > CHECKPOINTING_ABOVE if data else False
    run = distil(
        student,
        session_teacher(original),
        data,
        steps=steps,
        train=train,
        logits=logits,
        checkpoint=checkpoint,
        seed=seed,
        progress=progress,
    )
    names = _parameter_names(converted.graph)
    inside = {name for named in names.values() for name in named.values()}
    arrays = student.wide_initializers(inside)
    parameters = {
        node: NormParameters(
            arrays[named["weight"]],
            arrays[named["bias"]],
            {name: arrays[value] for name, value in named.items() if name not in ("weight", "bias")},
        )
        for node, named in names.items()
    }
    others = [name for name in student.learned() if name not in inside] if train == "all" else []
    return Distilled(run, parameters, student.initializers(others))


def _parameter_names(graph: ir.Graph) -> dict[str, dict[str, str]]:
    """By node: its initializers, by what they are to the function."""
    found: dict[str, dict[str, str]] = {}
    for node in graph:
        if node.domain != DOMAIN:
            continue
        for function in REGISTRY.values():
            if node.op_type in (function.op_type, function.skip_op_type):
                first = 1 if node.op_type == function.op_type else 2
                roles = ("weight", "bias", *function.parameter_names)
                found[str(node.name)] = {
                    role: str(value.name) for role, value in zip(roles, node.inputs[first:], strict=True) if value
                }
    return found

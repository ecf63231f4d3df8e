"""Distillation of a converted ONNX model: the graph runs in PyTorch, the original in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from dynorm_onnx.functions import Coupling, NormParameters
from dynorm_onnx.functions.coupling import INPUTS
from dynorm_onnx.graph.linear import find_linear_layers
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.pytorch.distil.basis import learn_bases, usable_bases
from dynorm_onnx.pytorch.distil.fading import without_zeros
from dynorm_onnx.pytorch.distil.hidden import with_hidden_outputs
from dynorm_onnx.pytorch.distil.teacher import session_teacher
from dynorm_onnx.pytorch.distil.trainer import Distillation, StepProgress, distil
from dynorm_onnx.pytorch.graph import GraphModule
from dynorm_onnx.pytorch.graph.functions import function_inputs
from dynorm_onnx.pytorch.graph.tensors import array_to_torch
from dynorm_onnx.runtime.arrays import Feeds

log = logging.getLogger(__name__)

CHANNELS, COUPLING = INPUTS

TOKENS_PER_STEP = 2048
"""Of this size batches are made for training: smaller ones lead further on the same text, but take longer for it."""

HIDDEN_LIMIT = 1 << 30
"""Bytes of hidden values of one step above which they are not compared."""

CHECKPOINTING_ABOVE = 4 << 30
"""Bytes of activations of one batch above which blocks keep only their borders and are computed again."""


@dataclasses.dataclass(frozen=True)
class Distilled:
    """What came out: parameters by the name of the norm's node, other weights by initializer in their own types."""

    run: Distillation
    parameters: Mapping[str, NormParameters]
    initializers: Mapping[str, np.ndarray]


def distil_model(
    original: ir.Model,
    converted: ir.Model,
    norms: Sequence[LoweredNorm],
    batches: Sequence[Feeds],
    *,
    open_model: Callable[[ir.Model], Any],
    steps: int,
    learning_rate: float,
    train: str,
    logits: str | None,
    checkpoint: Path | None,
    seed: int,
    progress: Callable[[StepProgress], None],
) -> Distilled:
    """Train a model whose norms are `dynorm` nodes towards its original.

    Args:
        original, converted: not changed; the second is computed in float32 whatever its types. What linear
            layers of both give is compared where values of both have the same name.
        norms: of the original, those that were replaced. With train="all", the basis of a stream that they alone
            read is learned too.
        batches: feeds of both; a step takes about TOKENS_PER_STEP tokens of them.
        open_model: makes a session of ONNX Runtime.
        logits: the name of the output of logits, if there is one.
        steps, learning_rate, train, checkpoint, seed, progress: as distil() has them.

    Raises what distil() raises, and ModelError for an operator that PyTorch has no counterpart of here.
    """
    data = [{name: array_to_torch(array) for name, array in feeds.items()} for feeds in step_sized(batches, seed)]
    bases = usable_bases(original.graph, norms) if train == "all" else ()
    writers = {name for basis in bases for name in basis.writers}  # what they give has another basis in both
    teacher, trained, hidden = with_hidden_outputs(original, converted, leave=writers)
    if hidden_bytes(trained, hidden, data) > HIDDEN_LIMIT:
        log.info("%d hidden values are too large to be compared: only the outputs are", len(hidden))
        teacher, trained, hidden = original, converted, ()
    student = GraphModule(trained, float_type=torch.float32)
    names = function_initializers(converted.graph)
    learn_bases(student, bases, names)
    student.checkpointing = student.activation_bytes(data[0]) > CHECKPOINTING_ABOVE if data else False
    run = distil(
        student,
        session_teacher(open_model(teacher)),
        data,
        steps=steps,
        learning_rate=learning_rate,
        train=train,
        logits=logits,
        hidden_outputs=hidden,
        checkpoint=checkpoint,
        seed=seed,
        progress=progress,
    )
    inside = {name for named in names.values() for name in named.values()}
    others = [name for name in student.changed() if name not in inside] if train == "all" else []
    return Distilled(run, trained_functions(student, converted.graph), student.initializers(others))


def step_sized(batches: Sequence[Feeds], seed: int) -> list[Feeds]:
    """The rows of the batches, mixed and put together anew to about TOKENS_PER_STEP tokens.

    Rows are mixed where they have the same shapes. What lies side by side in the data is often of one kind (pieces of
    one file), and a step on one kind of text undoes some of what the last did. Batches without token ids, or whose
    arrays do not share their first axis, stay as they are.
    """
    rng = np.random.default_rng(seed)
    made: list[Feeds] = []
    alike: dict[Any, list[Feeds]] = {}
    for feeds in batches:
        rows = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
        if len(rows) > 1 or not any(array.dtype == np.int64 for array in feeds.values()):
            made.append(feeds)
        else:
            shapes = tuple((name, array.shape[1:], array.dtype) for name, array in sorted(feeds.items()))
            alike.setdefault(shapes, []).append(feeds)
    for group in alike.values():
        whole = {name: np.concatenate([feeds[name] for feeds in group]) for name in group[0]}
        tokens = max(array.size for array in whole.values() if array.dtype == np.int64)
        count = len(next(iter(whole.values())))
        parts = min(count, max(1, round(tokens / TOKENS_PER_STEP)))
        for rows_of_step in np.array_split(rng.permutation(count), parts):
            made.append({name: array[rows_of_step] for name, array in whole.items()})
    return made


def hidden_bytes(model: ir.Model, names: Sequence[str], data: Sequence[Mapping[str, torch.Tensor]]) -> int:
    """About how large the float32 values of these outputs are for the largest batch, in original and student."""
    wanted = frozenset(names)
    widths = sum(
        layer.outputs for layer in find_linear_layers(model.graph).layers if layer.y and layer.y.name in wanted
    )
    tokens = max((t.numel() for feeds in data for t in feeds.values() if t.dtype == torch.int64), default=0)
    return 2 * 4 * widths * tokens


def function_initializers(graph: ir.Graph) -> dict[str, dict[str, str]]:
    """By node: its initializers, by what they are to the function; "channels" and "coupling" in the coupled forms."""
    return {
        str(node.name): {role: str(value.name) for role, value in inputs.items()}
        for node in graph
        if (inputs := function_inputs(node))
    }


def trained_functions(student: GraphModule, graph: ir.Graph) -> dict[str, NormParameters]:
    """The parameters of our functions in `graph` as they are in the student made from it, by the node's name.

    Coupled channels whose strength has come to zero are left out.
    """
    found = {}
    for node, named in function_initializers(graph).items():
        arrays = student.wide_initializers([name for role, name in named.items() if role != CHANNELS])
        values = {role: arrays[name] for role, name in named.items() if role != CHANNELS}
        coupling = None
        if CHANNELS in named:
            constant = graph.initializers[named[CHANNELS]].const_value
            assert constant is not None
            coupling = without_zeros(Coupling(constant.numpy(), values.pop(COUPLING)))
        found[node] = NormParameters(values.pop("weight"), values.pop("bias"), values, coupling)
    return found

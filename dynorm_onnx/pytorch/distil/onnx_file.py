"""Distillation of a converted ONNX model: its graph runs in PyTorch, the original there or in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from dynorm_onnx.errors import ModelError
from dynorm_onnx.functions import Coupling, NormParameters
from dynorm_onnx.functions.coupling import INPUTS
from dynorm_onnx.graph.edit.pieces import part_of_model
from dynorm_onnx.graph.linear.find import find_linear_layers
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.pytorch.distil.basis import learn_bases, usable_bases
from dynorm_onnx.pytorch.distil.blocks import BlockProgress, BlockRun, Blockwise, train_blocks
from dynorm_onnx.pytorch.distil.chunked import ChunkedKL
from dynorm_onnx.pytorch.distil.fading import without_zeros
from dynorm_onnx.pytorch.distil.hidden import POSITIONS, Compared, sampled, with_hidden_outputs
from dynorm_onnx.pytorch.distil.losses import MASK
from dynorm_onnx.pytorch.distil.parallel import join_processes
from dynorm_onnx.pytorch.distil.teacher import graph_teacher, session_teacher
from dynorm_onnx.pytorch.distil.trainer import (
    NORM_RATE,
    Distillation,
    StepProgress,
    best_device,
    distil,
    precision_on,
)
from dynorm_onnx.pytorch.graph import GraphModule
from dynorm_onnx.pytorch.graph.functions import function_inputs
from dynorm_onnx.pytorch.graph.tensors import array_to_torch
from dynorm_onnx.runtime.arrays import Feeds, is_tensor_of_numbers

log = logging.getLogger(__name__)

CHANNELS, COUPLING = INPUTS

TOKENS_PER_STEP = 2048
"""Of this size batches are made for training: smaller ones lead further on the same text, but take longer for it."""

HIDDEN_LIMIT = 1 << 30
"""Bytes of hidden values of one step above which they are compared at SAMPLED_TOKENS of its tokens only."""

SAMPLED_TOKENS = 512

LOGITS_LIMIT = 256 << 20
"""Bytes of the logits of one step, of one model, above which they are made and compared a part at a time."""

CHECKPOINTING_ABOVE = 4 << 30
"""Bytes of activations of one batch above which blocks keep only their borders and are computed again."""

_IDS = "input_ids"


@dataclasses.dataclass(frozen=True)
class Distilled:
    """What came out: parameters by the name of the norm's node, other weights by initializer in their own types.

    `blocks` tells of the blocks that were trained by themselves before.
    """

    run: Distillation
    parameters: Mapping[str, NormParameters]
    initializers: Mapping[str, np.ndarray]
    blocks: tuple[BlockRun, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """What was done, for JSON."""
        blocks = [{"border": b.border, "before": round(b.before, 6), "after": round(b.after, 6)} for b in self.blocks]
        return self.run.as_dict() | {"blocks": blocks}


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
    coupled: int | None = None,
    block_steps: int = 0,
    block_progress: Callable[[BlockProgress], None] = lambda told: None,
    precision: str = "auto",
) -> Distilled:
    """Train a model whose norms are `dynorm` nodes towards its original.

    Args:
        original: not changed.
        converted: not changed, and computed in float32 whatever its types. What linear layers of both give is
            compared where values of both have the same name.
        norms: of the original, those that were replaced. With train="all", the basis of a stream that they alone
            read is learned too.
        batches: feeds of both, arrays of the shapes and types of the graphs' inputs; a step takes about TOKENS_PER_STEP
            tokens of them.
        open_model: makes a session of ONNX Runtime, for the original where PyTorch is not the faster one.
        logits: the name of the output of logits, if there is one.
        steps: batches to train on, as of distil(), as are those up to `precision`.
        learning_rate: its peak.
        train: "norms" or "all".
        checkpoint: where an interrupted run goes on from.
        seed: of the order of batches.
        progress: called after every step.
        coupled: how many coupled channels a function keeps at most.
        precision: of the products.
        block_steps: how many steps every block is trained by itself before (blocks.py); not again where a checkpoint
            is there.
        block_progress: called after each block.

    Raises what distil() raises, and ModelError for an operator that PyTorch has no counterpart of here.
    """
    data = [{name: array_to_torch(array) for name, array in feeds.items()} for feeds in step_sized(batches, seed)]
    bases = usable_bases(original.graph, norms) if train == "all" else ()
    writers = {name for basis in bases for name in basis.writers}  # what they give has another basis in both
    join_processes(best_device())
    compared, data = _compared(original, converted, writers, data, seed)
    student, teacher, head = _student(compared, logits, data)
    student.checkpointing = student.activation_bytes(data[0]) > CHECKPOINTING_ABOVE if data else False
    blocks: tuple[BlockRun, ...] = ()
    if block_steps and not (checkpoint is not None and checkpoint.exists()):
        device = best_device()
        how = Blockwise(
            block_steps, learning_rate, NORM_RATE * learning_rate, train, precision_on(device, precision), seed
        )
        source = GraphModule(original, float_type=torch.float32).to(device)
        blocks = train_blocks(student.to(device), source, data, how, block_progress)
        del source
    names = function_initializers(converted.graph)
    learn_bases(student, bases, names)
    run = distil(
        student,
        _teacher(teacher, open_model, large=head is not None, precision=precision_on(best_device(), precision)),
        data,
        steps=steps,
        learning_rate=learning_rate,
        train=train,
        logits=logits,
        hidden_outputs=compared.names,
        checkpoint=checkpoint,
        seed=seed,
        coupled=coupled,
        precision=precision,
        head=head,
        progress=progress,
    )
    inside = {name for named in names.values() for name in named.values()}
    others = [name for name in student.changed() if name not in inside] if train == "all" else []
    return Distilled(run, trained_functions(student, converted.graph), student.initializers(others), blocks)


@torch.no_grad()
def run_once(model: ir.Model, feeds: Feeds) -> None:
    """Runs a model as it will be trained, on `feeds`: arrays of the shapes and types of its inputs, by name.

    Raises ModelError, naming the node, where one fails, and what GraphModule raises.
    """
    GraphModule(model, float_type=torch.float32)(**{name: array_to_torch(array) for name, array in feeds.items()})


def _teacher(
    original: ir.Model, open_model: Callable[[ir.Model], Any], *, large: bool, precision: str
) -> Callable[..., dict[str, torch.Tensor]]:
    """The original as it is run beside the student.

    By ONNX Runtime, but in PyTorch on CUDA, where a session on the processor would keep the GPU waiting, and for a
    `large` model where the processor computes in bfloat16: ONNX Runtime's float32 takes three times as long (2,048
    tokens through 135 million parameters: 4.2 s, and 1.3 s), and so much output is not kept for a second round.
    """
    device = best_device()
    if device.type == "cuda" or (large and precision == "bfloat16"):
        try:
            return graph_teacher(GraphModule(original, float_type=torch.float32), device)
        except ModelError as error:
            log.info("the original is run by ONNX Runtime: %s", error)
    return session_teacher(open_model(original))


Data = list[dict[str, torch.Tensor]]


def _compared(
    original: ir.Model, converted: ir.Model, leave: Collection[str], data: Data, seed: int
) -> tuple[Compared, Data]:
    """Both models with their hidden values, and the data with the tokens to compare them at, if not at all."""
    compared = with_hidden_outputs(original, converted, leave)
    if hidden_bytes(compared.converted, compared.names, data) <= HIDDEN_LIMIT:
        return compared, data
    if not all(_IDS in feeds and feeds[_IDS].ndim == 2 for feeds in data):
        log.info("%d hidden values are too large to be compared: only the outputs are", len(compared.names))
        return Compared(original, converted, ()), data
    compared = sampled(compared, _IDS)
    log.info("%d hidden values are compared at %d tokens of a step", len(compared.names), SAMPLED_TOKENS)
    rng = np.random.default_rng(seed)
    return compared, [{**feeds, POSITIONS: _positions(feeds, rng)} for feeds in data]


def _positions(feeds: Mapping[str, torch.Tensor], rng: np.random.Generator) -> torch.Tensor:
    """As many tokens of each text, [rows, n], padding left out where a text has any other token."""
    ids = feeds[_IDS]
    mask = feeds.get(MASK)
    shown = np.ones(ids.shape) if mask is None or mask.shape != ids.shape else (mask != 0).numpy().astype(float)
    shown[shown.sum(1) == 0] = 1
    each = min(ids.shape[1], -(-SAMPLED_TOKENS // len(ids)))
    return torch.from_numpy(np.stack([rng.choice(len(row), each, p=row / row.sum()) for row in shown]))


def _student(compared: Compared, logits: str | None, data: Data) -> tuple[GraphModule, ir.Model, ChunkedKL | None]:
    """What is trained, the model that it is trained towards, and what compares their logits if those are too large."""
    tokens = max((t.numel() for feeds in data for t in feeds.values() if t.dtype == torch.int64), default=0)
    size = next((v.shape[-1] for v in compared.converted.graph.outputs if v.name == logits and v.shape), None)
    large = isinstance(size, int) and 4 * size * tokens > LOGITS_LIMIT
    student = GraphModule(compared.converted, float_type=torch.float32, tail=logits if large else None)
    original = compared.original
    there = {str(value.name) for node in original.graph for value in node.outputs}
    if student.tail is None or logits is None or student.tail.source not in there:
        whole = student if student.tail is None else GraphModule(compared.converted, float_type=torch.float32)
        return whole, original, None
    source = student.tail.source
    end = GraphModule(part_of_model(original, [source], [logits]), float_type=torch.float32, tail=logits)
    outputs = [source if value.name == logits else str(value.name) for value in original.graph.outputs]
    inputs = [str(value.name) for value in original.graph.inputs if not value.is_initializer()]
    return student, part_of_model(original, inputs, outputs), ChunkedKL(student, end)


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
        # what PyTorch has no type for, it has no operator for either: strings and sequences are read by nobody here
        feeds = {name: array for name, array in feeds.items() if is_tensor_of_numbers(array)}
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

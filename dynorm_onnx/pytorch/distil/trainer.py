"""distil(): a short training of a converted model towards the outputs of its original."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dynorm_onnx.errors import DataError, ModelError, UsageError
from dynorm_onnx.progress import peak_memory_mib
from dynorm_onnx.pytorch.distil.batches import Batch, called, moved, share_of, tokens_of
from dynorm_onnx.pytorch.distil.checkpoint import RunState, load_checkpoint, save_checkpoint
from dynorm_onnx.pytorch.distil.chunked import ChunkedKL
from dynorm_onnx.pytorch.distil.coupled import begin_fading, let_go
from dynorm_onnx.pytorch.distil.fading import Fading
from dynorm_onnx.pytorch.distil.gradual import Gradual
from dynorm_onnx.pytorch.distil.hidden import PREFIX, shared_layers, told
from dynorm_onnx.pytorch.distil.losses import MASK, Outputs, Term, distance, hidden_error, total
from dynorm_onnx.pytorch.distil.module_basis import bases_learned, usable_streams
from dynorm_onnx.pytorch.distil.module_streams import ModuleStream
from dynorm_onnx.pytorch.distil.optimizer import Trained, make_optimizers, set_rates, trained_parameters
from dynorm_onnx.pytorch.distil.parallel import join_processes, rank, share_first, sum_gradients, summed, world
from dynorm_onnx.pytorch.distil.teacher import Teacher
from dynorm_onnx.pytorch.graph import GraphModule

log = logging.getLogger(__name__)

NORM_RATE = 2 / 3  # the learning rate of the functions' parameters, over that of the others
LARGEST_GRADIENT = 1.0
SAVE_EVERY = 60.0  # seconds
CURVE_POINTS = 200


@dataclasses.dataclass(frozen=True)
class StepProgress:
    """What is told after every step: `loss` is that of the step, `seconds_left` an estimate.

    `tokens_per_second` is 0 where the batches hold no token ids.
    """

    step: int
    steps: int
    loss: float
    seconds_left: float
    tokens_per_second: float = 0.0


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What a run did. `losses` are (step, mean loss since the last point), from the first step to the last."""

    steps: int
    tokens: int  # padding not counted; 0 where the batches hold no token ids
    seconds: float  # of all parts of a run that was interrupted
    losses: tuple[tuple[int, float], ...]
    train: str
    precision: str  # of the products: "float32", or "bfloat16"; weights and what is added to them are float32
    resumed_from: int | None  # steps that an interrupted run had done
    processes: int = 1  # that shared the rows of every batch
    memory_mib: float = 0.0  # the most that this process ever held
    coupled: int | None = None  # how many coupled channels of each function were kept, where some had to fade

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        shown = dataclasses.asdict(self)
        return {**shown, "losses": [{"step": step, "loss": round(loss, 6)} for step, loss in self.losses]}


def distil(
    student: nn.Module,
    teacher: Callable[..., Any],
    data: Sequence[Batch],
    *,
    steps: int,
    train: str = "all",
    learning_rate: float = 0.003,
    norm_learning_rate: float | None = None,
    logits: str | None = "logits",
    hidden: float = 20.0,
    hidden_outputs: Sequence[str] = (),
    order: Sequence[str] = (),
    checkpoint: Path | str | None = None,
    precision: str = "auto",
    device: torch.device | str | None = None,
    seed: int = 0,
    coupled: int | None = None,
    head: ChunkedKL | None = None,
    progress: Callable[[StepProgress], None] | None = None,
) -> Distillation:
    """Train `student`, in place, towards what `teacher` gives on the same batches.

    Both are called alike, with a batch as it is given; they may return a tensor, a mapping of names (as
    models of Hugging Face do) or a tuple. The loss is the KL to the teacher's logits, or without logits the
    relative squared error and cosine of the outputs, and hidden values beside it; positions that
    `attention_mask` hides do not count.

    Args:
        student: a model whose norms were replaced (replace_norms), or a GraphModule of a converted file.
        teacher: the original: a module, or any callable.
        data: batches (a tensor, a tuple, or a mapping each) that fit in memory; they are gone through in an
            order drawn anew for every round.
        steps: batches to train on.
        train: "norms", the parameters of the functions in the place of norms, or "all" weights, and with them the basis
            of every stream that replaced norms alone read, where that can be proven (find_module_streams); not with
            `order`, since a norm that is still there minds its basis.
        learning_rate: peak of a parameter's step relative to its root mean square.
        norm_learning_rate: the same for the functions' parameters, of which alpha and beta are trained by their
            logarithm; by default two thirds of the first.
        logits: the name of the output of logits, where there is one of that name; a model that returns a single
            tensor calls it "output".
        hidden: weight of the relative squared error of hidden values when training begins; it falls evenly to none.
            Hidden values are what the layers with a weight matrix give that modules of the same path have in both.
        hidden_outputs: outputs that count as hidden values too, such as those of layers in a graph.
        order: paths of the replaced norms in the order in which they give way (by half of the steps); until
            its turn the teacher's module stands at the path. Empty: all from the start.
        checkpoint: a file, written every minute; a run that was interrupted goes on from it when called again
            with the same arguments. It is left in place at the end.
        precision: "float32", "bfloat16" (autocast, of student and teacher), or "auto": bfloat16 where the processor
            computes in it.
        device: where to train; by default CUDA if it is there and the student fits, else the CPU.
        seed: of the order of batches.
        coupled: how many coupled channels a function keeps at most; others fade during the first half of the steps, the
            most massive last, and are gone at the end (fading.py). None leaves all, and trains their strengths.
        head: what compares logits where student and teacher give what they are made from in their place.
        progress: called after every step.

    In processes that torchrun started, each takes its share of every batch's rows, and all end with the same student;
    the data must be the same in all, and only the first one's student counts at the beginning.

    Raises:
        UsageError: an argument makes no sense, or the checkpoint is another run's.
        DataError: there is no batch, or no output that could be compared.
        ModelError: the loss is not finite.
    """
    checkpoint = None if checkpoint is None else Path(checkpoint)
    norm_learning_rate = NORM_RATE * learning_rate if norm_learning_rate is None else norm_learning_rate
    if min(learning_rate, norm_learning_rate) <= 0:
        raise UsageError(f"learning_rate must be above 0, not {min(learning_rate, norm_learning_rate)}")
    if steps < 1:
        raise UsageError(f"steps must be at least 1, not {steps}")
    if not len(data):
        raise DataError("data holds no batch: nothing can be distilled")
    if coupled is not None and coupled < 0:
        raise UsageError(f"coupled must be 0 or more, not {coupled}")
    device = torch.device(device) if device is not None else best_device()
    precision = precision_on(device, precision)
    join_processes(device)
    student.to(device)
    share_first([*student.parameters(), *student.buffers()])  # before anything is decided by them
    streams: tuple[ModuleStream, ...] = ()
    if train == "all" and not order and not isinstance(student, GraphModule):
        example = moved(data[0], next(student.parameters()).device)
        streams = usable_streams(student, lambda model: called(model, example))
    with bases_learned(student, teacher, streams):
        leave = frozenset(path for stream in streams for path in stream.writers)
        run = _Run(student, teacher, data, steps, train, learning_rate, norm_learning_rate, logits, hidden,
                   hidden_outputs, leave, order, checkpoint, precision, device, seed, coupled, head)  # fmt: skip
        return run.go(progress or (lambda told: None))


class _Run:
    """One call of distil()."""

    def __init__(
        self, student: nn.Module, teacher: Callable[..., Any], data: Sequence[Batch], steps: int, train: str,
        rate: float, norm_rate: float, logits: str | None, hidden: float, hidden_outputs: Sequence[str],
        leave: Collection[str], order: Sequence[str], checkpoint: Path | None, precision: str,
        device: torch.device, seed: int, coupled: int | None, head: ChunkedKL | None,
    ) -> None:  # fmt: skip
        self.device, self.precision = device, precision
        self.student = student
        if isinstance(teacher, nn.Module):
            teacher = teacher.to(self.device).eval()
        self.gradual = Gradual(student, _as_module(teacher), order, steps) if order else None
        self.original = teacher
        self.layers = shared_layers(student, teacher, leave) if hidden else []
        self.data = data
        self.steps, self.train, self.seed, self.coupled = steps, train, seed, coupled
        self.logits, self.hidden, self.hidden_outputs = logits, hidden, frozenset(hidden_outputs)
        self.head = head
        if head is not None:
            head.to(self.device)
        self.fading: Fading | None = None
        self.checkpoint = checkpoint
        self.trained: list[Trained] = trained_parameters(student, train)
        computes = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        self.optimizers = make_optimizers(self.trained, rate, norm_rate, computes)
        self.arguments = {
            "steps": steps, "train": train, "learning_rate": rate, "norm_learning_rate": norm_rate, "logits": logits,
            "hidden": hidden, "hidden_outputs": len(hidden_outputs), "order": list(order), "coupled": coupled,
            "precision": self.precision, "seed": seed, "batches": len(data),
        }  # fmt: skip

    def go(self, progress: Callable[[StepProgress], None]) -> Distillation:
        state = RunState()
        if self.checkpoint is not None:
            state = load_checkpoint(self.checkpoint, self.arguments, self.trained, self.optimizers)
        resumed_from = state.step or None
        with (
            only_these_learn(self.student, self.trained),
            told(self.student, self.layers) as student,
            told(self.original, self.layers) as original,
        ):
            if self.coupled is not None:
                batches = (moved(batch, self.device) for batch in self.data)
                self.fading = begin_fading(
                    self.student, lambda b: self._call(student, b), batches, self.coupled, self.steps, state.fading
                )
                state.fading = self.fading.state()
            teacher = Teacher(lambda batch: self._call(original, batch), again=self.steps > len(self.data))
            self._all_steps(state, student, teacher, progress)
        if self.gradual is not None:
            self.gradual.finish()
        if self.checkpoint is not None and state.step > (resumed_from or 0):
            self._save(self.checkpoint, state)
        let_go(self.student)
        return Distillation(
            self.steps,
            state.tokens,
            round(state.seconds, 3),
            tuple(state.losses),
            self.train,
            self.precision,
            resumed_from,
            world(),
            round(peak_memory_mib(), 1),
            self.coupled,
        )

    def _all_steps(
        self, state: RunState, student: Callable[..., Outputs], teacher: Teacher,
        progress: Callable[[StepProgress], None],
    ) -> None:  # fmt: skip
        """Those that are left, told of and saved as they are done."""
        before, started, saved = state.seconds, time.monotonic(), time.monotonic()
        first, tokens_before = state.step, state.tokens
        since: list[float] = []
        for step in range(state.step, self.steps):
            index = self._batch_index(step)
            batch = moved(share_of(self.data[index], rank(), world()), self.device)
            since.append(self._step(step, student, teacher(index, batch), batch))
            state.step, state.tokens = step + 1, state.tokens + tokens_of(self.data[index])
            taken = time.monotonic() - started
            state.seconds = before + taken
            if step == 0 or (step + 1) % max(1, self.steps // CURVE_POINTS) == 0 or step + 1 == self.steps:
                state.losses.append((step + 1, float(np.mean(since))))
                since.clear()
            left = taken / (step + 1 - first) * (self.steps - step - 1)
            pace = (state.tokens - tokens_before) / max(taken, 1e-9)
            progress(StepProgress(step + 1, self.steps, state.losses[-1][1], left, pace))
            if self.checkpoint is not None and not since and time.monotonic() - saved > SAVE_EVERY:
                self._save(self.checkpoint, state)
                saved = time.monotonic()

    def _save(self, path: Path, state: RunState) -> None:
        """All processes hold the same, and the first writes it."""
        if rank() == 0:
            save_checkpoint(path, self.arguments, state, self.trained, self.optimizers)

    def _step(self, step: int, student: Callable[..., Outputs], target: Outputs, batch: Batch) -> float:
        """One step; returns the loss without the hidden values' share."""
        if self.gradual is not None:
            self.gradual.at(step)
        if self.fading is not None:
            self.fading.at(step)
        set_rates(self.optimizers, step, self.steps)
        target = {name: tensor.to(self.device) for name, tensor in target.items()}
        output = self._call(student, batch)
        mask = batch.get(MASK) if isinstance(batch, Mapping) else None
        hidden = [name for name in target if name in output and self._is_hidden(name)]
        loss = total(self._outputs_compared(output, target, mask), summed)
        value = float(summed(loss.detach()))
        if not math.isfinite(value):
            raise ModelError(
                f"the loss of distillation is {value} at step {step + 1}: try a smaller learning rate, or float32"
            )
        if hidden:
            share = total(hidden_error(output, target, hidden, mask), summed)
            loss = loss + self.hidden * (1 - step / self.steps) * share
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [t.parameter for t in self.trained]
        sum_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        for optimizer in self.optimizers:
            optimizer.step()
        return value

    def _outputs_compared(self, output: Outputs, target: Outputs, mask: torch.Tensor | None) -> list[Term]:
        if self.head is not None:
            with self._autocast():
                return [self.head.term(output, target, mask)]
        outputs = {name: tensor for name, tensor in target.items() if not self._is_hidden(name)}
        return distance(output, outputs, mask, self.logits if self.logits in target else None)

    def _call(self, model: Callable[..., Outputs], batch: Batch) -> Outputs:
        with self._autocast():
            outputs: Outputs = called(model, batch)
            return outputs

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _is_hidden(self, name: str) -> bool:
        return name.startswith(PREFIX) or name in self.hidden_outputs

    def _batch_index(self, step: int) -> int:
        """Every round goes through all batches, in an order that seed and round alone decide."""
        round_, place = divmod(step, len(self.data))
        if place == 0 or not hasattr(self, "_order"):
            self._order = np.random.default_rng([self.seed, round_]).permutation(len(self.data))
        return int(self._order[place])


@contextlib.contextmanager
def only_these_learn(student: nn.Module, trained: Sequence[Trained]) -> Iterator[None]:
    """Gradients for the trained parameters alone; the student in eval mode, as dropout would blur the target."""
    before = {parameter: parameter.requires_grad for parameter in student.parameters()}
    modes = {module: module.training for module in student.modules()}
    chosen = {id(t.parameter) for t in trained}
    for parameter in before:
        parameter.requires_grad_(id(parameter) in chosen)
    student.eval()
    try:
        yield
    finally:
        for parameter, needed in before.items():
            parameter.requires_grad_(needed)
            parameter.grad = None
        for module, mode in modes.items():
            module.training = mode


def _as_module(teacher: Callable[..., Any]) -> nn.Module:
    if not isinstance(teacher, nn.Module):
        raise UsageError("order needs a teacher that is an nn.Module: its norms stand in until their turn comes")
    return teacher


def best_device() -> torch.device:
    """CUDA where it is; of several GPUs that of this process, as torchrun counts them."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def precision_on(device: torch.device, asked: str = "auto") -> str:
    """What products are computed in, "float32" or "bfloat16". Raises UsageError for what is neither, nor "auto"."""
    if asked not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"precision={asked!r} is not one of auto, float32, bfloat16")
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    computes = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bfloat16" if computes else "float32"

"""How far a student's outputs are from the teacher's: what distillation minimises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dynorm_onnx.errors import DataError

Outputs = Mapping[str, Tensor]
"""Float tensors by name."""

MASK = "attention_mask"


def named_outputs(output: Any) -> dict[str, Tensor]:
    """The float tensors of what a model returned, by name: a tensor, a mapping, a tuple, an object of Hugging Face.

    Caches and other nested things are left out. Raises DataError where there is no float tensor.
    """
    if isinstance(output, Tensor):
        items: dict[str, Any] = {"output": output}
    elif isinstance(output, Mapping):
        items = dict(output)
    elif isinstance(output, tuple | list):
        items = {f"output{place}": item for place, item in enumerate(output)}
    else:
        raise DataError(f"the model returned {type(output).__name__}, which holds no outputs that could be compared")
    found = {name: item for name, item in items.items() if isinstance(item, Tensor) and item.is_floating_point()}
    if not found:
        raise DataError("the model returned no float tensor that could be compared")
    return found


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of a loss: weight * wrong / over.

    `wrong` is a sum over what one process sees of a step, a scalar float32 with a gradient; `over` what the sum of all
    processes is divided by: a count of tokens, or the size of the target.
    """

    wrong: Tensor
    over: Tensor
    weight: float = 1.0


def total(terms: Sequence[Term], summed: Callable[[Tensor], Tensor] = lambda values: values) -> Tensor:
    """This process's share of a loss, a scalar float32; `summed` adds the divisors of all processes up."""
    over = summed(torch.stack([term.over.detach() for term in terms])).clamp(min=1e-12)
    return torch.stack([term.weight * term.wrong / size for term, size in zip(terms, over, strict=True)]).sum()


def distance(student: Outputs, teacher: Outputs, mask: Tensor | None, logits: str | None) -> list[Term]:
    """The loss: with logits the mean KL(teacher || student) of a token in nats; without them the mean unlikeness of all
    outputs that both have.

    Args:
        student, teacher: [batch, length, ...] or any other shape, the same for both.
        mask: [batch, length], 0 for padding, which counts for nothing.
        logits: the output of logits over a vocabulary, if there is one.

    Raises DataError where both have no output in common, or one of another shape.
    """
    require_shapes(student, teacher, teacher if logits is None else [logits])
    if logits is not None:
        return [kl(student[logits], teacher[logits], mask)]
    both = [name for name in teacher if name in student and teacher[name].numel()]
    if not both:
        raise DataError("student and teacher have no output in common that could be compared")
    terms = [term for name in both for term in unlikeness(student[name], teacher[name], mask)]
    return [dataclasses.replace(term, weight=1 / len(both)) for term in terms]


def require_shapes(student: Outputs, teacher: Outputs, names: Iterable[str]) -> None:
    """Raises DataError for an output of these of another shape in the student, as where durations are predicted."""
    for name in names:
        if name in student and name in teacher and student[name].shape != teacher[name].shape:
            shapes = f"{list(student[name].shape)}, not {list(teacher[name].shape)}"
            raise DataError(f"{name} has shape {shapes} as in the original, so that they cannot be compared")


def hidden_error(student: Outputs, teacher: Outputs, names: Sequence[str], mask: Tensor | None) -> list[Term]:
    """The mean over these values of the relative squared error, over all their tokens together."""
    require_shapes(student, teacher, names)
    terms = []
    for name in names:
        y, target = student[name].float(), teacher[name].float()
        if mask is not None and _fits(mask, target.shape[:2]):
            shown = mask.to(target.dtype).reshape(mask.shape + (1,) * (target.ndim - 2))
            y, target = y * shown, target * shown
        wrong = functional.mse_loss(y, target, reduction="sum")
        terms.append(Term(wrong, target.square().sum(), 1 / len(names)))
    return terms


def kl(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Term:
    """Mean KL(teacher || student) over tokens, nats, of logits [..., V]."""
    log_q = torch.log_softmax(student.float(), -1)
    log_p = torch.log_softmax(teacher.float(), -1)
    return _mean(functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1), mask)


def unlikeness(student: Tensor, teacher: Tensor, mask: Tensor | None) -> list[Term]:
    """Relative squared error plus one minus cosine, of vectors over the last axis, averaged.

    An output with an axis of tokens is also compared after averaging over them, as sentence embeddings
    are made from it: that difference counts as much as all the tokens.
    """
    y, target = student.float(), teacher.float()
    each = _mean(_vector_unlikeness(y, target), mask if _fits(mask, target.shape[:-1]) else None)
    if target.ndim != 3:
        return [each]
    weights = mask.float() if _fits(mask, target.shape[:2]) and mask is not None else y.new_ones(y.shape[:2])
    share = (weights / weights.sum(1, keepdim=True).clamp(min=1)).unsqueeze(-1)
    pooled = _vector_unlikeness((share * y).sum(1), (share * target).sum(1))
    return [each, _mean(pooled, None)]


def _vector_unlikeness(y: Tensor, target: Tensor) -> Tensor:
    square = target.square().sum(-1).clamp(min=1e-12)
    return (y - target).square().sum(-1) / square + 1 - functional.cosine_similarity(y, target, dim=-1, eps=1e-6)


def _fits(mask: Tensor | None, shape: torch.Size) -> bool:
    return mask is not None and mask.shape == shape


def _mean(values: Tensor, mask: Tensor | None) -> Term:
    """Over the tokens that the mask shows, where it has the shape of the values."""
    weights = mask.to(values.dtype) if mask is not None and _fits(mask, values.shape) else torch.ones_like(values)
    return Term((values * weights).sum(), weights.sum())

"""The KL of logits that are made a few tokens at a time, in the original and in the student.

For a vocabulary of 49,152 words the logits of 2,048 tokens take 400 MB, and a loss over them several times that. Here
logits, loss and gradients of one part of the tokens are there at a time. Nothing is computed twice: the gradients for
the rows and the weights are known when the forward pass is over, and the weights' are added up in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynorm_onnx.pytorch.distil.losses import Outputs, Term
from dynorm_onnx.pytorch.graph import GraphModule

CHUNK_BYTES = 64 << 20
"""Of float32 logits that are there at a time, of one model."""

Head = Callable[[Tensor], Tensor]
"""Rows [n, C] to logits [n, V]."""


class ChunkedKL:
    """The loss of a student whose tail was cut off, against an original that gives the same rows."""

    def __init__(self, student: GraphModule, original: GraphModule) -> None:
        assert student.tail is not None and original.tail is not None
        self.source = student.tail.source
        self._student, self._original = student, original

    def to(self, device: torch.device) -> None:
        """Takes the original's tail to a device."""
        self._original.to(device)

    def term(self, student: Outputs, teacher: Outputs, mask: Tensor | None) -> Term:
        """As losses.kl() of the logits; `mask` [batch, length] hides padding. Autocast counts as it is set here."""
        rows, target = student[self.source].flatten(0, -2), teacher[self.source].flatten(0, -2)
        weights = torch.ones(len(rows), device=rows.device)
        if mask is not None and mask.shape == student[self.source].shape[:-1]:
            weights = mask.flatten().to(weights)
        values = self._student.tail_values()
        with torch.no_grad():
            fixed = self._original.tail_values()
        names = list(values)
        wrong = _ChunkedKL.apply(
            lambda part, tensors: self._student.run_tail(part, dict(zip(names, tensors, strict=True))),
            lambda part: self._original.run_tail(part, fixed),
            target, weights, rows, *values.values(),
        )  # fmt: skip
        return Term(wrong, weights.sum())


class _ChunkedKL(torch.autograd.Function):
    """sum over rows of weight * KL(original || student), with gradients for the rows and for what makes logits."""

    @staticmethod
    def forward(
        ctx: Any, head: Callable[..., Tensor], original: Head, target: Tensor, weights: Tensor, rows: Tensor,
        *tensors: Tensor,
    ) -> Tensor:  # fmt: skip
        needed = [ctx.needs_input_grad[4], *ctx.needs_input_grad[5:]]
        leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needed[1:], strict=True)]
        row_gradient = torch.zeros_like(rows, dtype=torch.float32)
        gradients = [torch.zeros_like(leaf) if leaf.requires_grad else None for leaf in leaves]
        total = rows.new_zeros((), dtype=torch.float32)
        size = chunk_rows(original(target[:1]).shape[-1])
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            with torch.enable_grad():
                given = rows[part].detach().requires_grad_(needed[0])
                logits = head(given, leaves)
            loss, toward = _kl(logits.detach(), original(target[part]), weights[part])
            total += loss
            wanted = [tensor for tensor in (given, *leaves) if tensor.requires_grad]
            found = iter(torch.autograd.grad(logits, wanted, toward.to(logits.dtype)) if wanted else ())
            if needed[0]:
                row_gradient[part] = next(found)
            for gradient in gradients:
                if gradient is not None:
                    gradient += next(found)
        ctx.row_type, ctx.gradients = rows.dtype, (row_gradient, *gradients)
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        row_gradient, *gradients = ctx.gradients
        ctx.gradients = None
        scaled = [None if gradient is None else gradient.mul_(outer) for gradient in gradients]
        return None, None, None, None, row_gradient.mul_(outer).to(ctx.row_type), *scaled


def chunk_rows(vocabulary: int) -> int:
    """How many tokens' logits are there at a time."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def _kl(student: Tensor, teacher: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum of KL(teacher || student), and its gradient by the student's logits [n, V]."""
    log_q, log_p = torch.log_softmax(student.float(), -1), torch.log_softmax(teacher.float(), -1)
    p = log_p.exp()
    loss = (weights * (p * (log_p - log_q)).sum(-1)).sum()
    return loss, log_q.exp_().sub_(p).mul_(weights.unsqueeze(-1))

"""What each process of test_parallel.py runs: the same distillation, its loss curve and weights written by the first.

Run as `torchrun --nproc-per-node N two_processes.py FOLDER`, for all kinds; main() is one of them, in any process.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import torch
from torch import nn

from dynorm_onnx.pytorch.distil import distil
from dynorm_onnx.pytorch.replace import replace_norms

KINDS = ("logits", "vectors")


class Model(nn.Module):
    """Two blocks of norm and layer, and a head: of words, or of vectors."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 16)
        self.norms = nn.ModuleList(nn.RMSNorm(16) for _ in range(2))
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, outputs)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embedding(input_ids)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + torch.tanh(layer(norm(x)))
        return {"logits" if self.head.out_features == 13 else "vectors": self.head(x)}


def main(output: Path, kind: str) -> None:
    torch.manual_seed(0)
    teacher = Model(13 if kind == "logits" else 5).eval()
    batches = []
    for _ in range(3):
        ids = torch.randint(0, 13, (5, 9))  # rows that two processes cannot share evenly
        batches.append({"input_ids": ids, "attention_mask": (torch.rand(5, 9) < 0.7).long()})
    student = copy.deepcopy(teacher)
    replace_norms(student, "dyisru", batches)
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        with torch.no_grad():
            student.head.weight.zero_()  # only the first process's student counts
    run = distil(student, teacher, batches, steps=12, learning_rate=0.01, precision="float32")
    if rank == 0:
        torch.save({"losses": run.losses, "state": student.state_dict(), "processes": run.processes}, output)


if __name__ == "__main__":
    for each in KINDS:
        main(Path(sys.argv[1]) / f"{each}.pt", each)

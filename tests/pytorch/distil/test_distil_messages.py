"""Errors of a distillation that no other test provokes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dynorm_onnx.errors import DataError, DynormError, ModelError, UsageError
from dynorm_onnx.pytorch import replace_norms
from dynorm_onnx.pytorch.distil import distil
from dynorm_onnx.pytorch.distil.batches import share_of
from dynorm_onnx.pytorch.distil.checkpoint import RunState, save_checkpoint
from dynorm_onnx.pytorch.distil.losses import named_outputs

X = torch.randn(2, 3, 8)


def student() -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    replace_norms(net, "dyt")
    return net


@pytest.mark.parametrize(("provoke", "error", "said"), [
    (lambda: share_of(X[:1], 0, 2), UsageError, "a batch of 1 rows cannot be shared by 2 processes"),
    (lambda: named_outputs(object()), DataError, "the model returned object, which holds no outputs"),
    (lambda: named_outputs([torch.tensor([1])]), DataError, "the model returned no float tensor"),
    (lambda: distil(student(), student(), [], steps=1), DataError, "data holds no batch: nothing can be distilled"),
    (lambda: distil(student(), student().forward, [X], steps=1, order=["1"]), UsageError,
     "order needs a teacher that is an nn.Module"),
    (lambda: distil(student(), lambda x: x * torch.nan, [X], steps=1), ModelError,
     "the loss of distillation is nan at step 1: try a smaller learning rate"),
    (lambda: replace_norms(student(), data=None, coupled=3), UsageError, "coupled=3: channels are chosen on data"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_what_cannot_be_is_named(provoke: Callable[[], Any], error: type[DynormError], said: str) -> None:
    with pytest.raises(error, match=said):
        provoke()


@pytest.mark.parametrize("there", [False, True], ids=["no folder", "a folder of that name"])
def test_a_checkpoint_that_cannot_be_written_is_named(there: bool, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "run.pt"
    if there:
        path.mkdir(parents=True)
    with pytest.raises(UsageError, match=r"the checkpoint .*run.pt cannot be written"):
        save_checkpoint(path, {}, RunState(), [], [])

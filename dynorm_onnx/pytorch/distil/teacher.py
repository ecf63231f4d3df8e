"""The original's outputs for every batch: computed when first wanted, and kept while memory allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dynorm_onnx.pytorch.distil.losses import named_outputs
from dynorm_onnx.pytorch.graph import GraphModule
from dynorm_onnx.pytorch.graph.tensors import array_to_torch
from dynorm_onnx.runtime.arrays import run

MEMORY_LIMIT = 2 << 30
"""Bytes of outputs that are kept; batches beyond it are computed anew each time."""


class Teacher:
    """Outputs of `call` on batches by their index; `again` says that batches come more than once."""

    def __init__(self, call: Callable[[Any], Any], *, again: bool) -> None:
        self._call = call
        self._room = MEMORY_LIMIT if again else 0
        self._kept: dict[int, dict[str, torch.Tensor]] = {}

    @torch.no_grad()
    def __call__(self, index: int, batch: Any) -> dict[str, torch.Tensor]:
        """The float outputs, detached."""
        if index in self._kept:
            return self._kept[index]
        outputs = {name: tensor.detach() for name, tensor in named_outputs(self._call(batch)).items()}
        size = sum(tensor.numel() * tensor.element_size() for tensor in outputs.values())
        if size <= self._room:
            self._room -= size
            self._kept[index] = outputs
        return outputs


def session_teacher(session: Any) -> Callable[..., dict[str, torch.Tensor]]:
    """A session of ONNX Runtime as a callable on tensors by input name, which are taken to the CPU for it."""

    def call(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        feeds: Mapping[str, np.ndarray] = {name: tensor.cpu().numpy() for name, tensor in inputs.items()}
        outputs = run(session, dict(feeds))
        return {name: array_to_torch(array) for name, array in outputs.items() if isinstance(array, np.ndarray)}

    return call


def graph_teacher(original: GraphModule, device: torch.device) -> Callable[..., dict[str, torch.Tensor]]:
    """A graph as a callable on tensors by input name, on `device`; autocast counts as it is set where it is called."""
    original = original.to(device).eval()

    def call(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs: dict[str, torch.Tensor] = original(**{name: inputs[name].to(device) for name in original.input_names})
        return outputs

    return call

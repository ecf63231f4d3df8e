"""A run on disk: what it takes to go on after an interruption as if there had been none."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dynorm_onnx.errors import UsageError
from dynorm_onnx.pytorch.distil.optimizer import Trained


@dataclasses.dataclass
class RunState:
    """Where a run is."""

    step: int = 0  # steps done
    tokens: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    fading: dict[str, Any] = dataclasses.field(default_factory=dict)  # of coupled channels: Fading.state()


def save_checkpoint(
    path: Path,
    arguments: dict[str, Any],
    state: RunState,
    trained: Sequence[Trained],
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Writes the file whole or not at all."""
    content = {
        "arguments": arguments,
        "state": dataclasses.asdict(state),
        "parameters": {t.name: t.parameter.detach() for t in trained},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    temporary = path.with_name(f".{path.name}.partial")
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's own writer tells of folders and full disks by the second
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"the checkpoint {path} cannot be written: {why}") from error


def load_checkpoint(
    path: Path, arguments: dict[str, Any], trained: Sequence[Trained], optimizers: Sequence[torch.optim.Optimizer]
) -> RunState:
    """The state of an interrupted run, its parameters and optimisers put in place; a new one without a file.

    Raises UsageError where the file is of a run with other arguments, or no checkpoint.
    """
    if not path.exists():
        return RunState()
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        theirs, saved, states = content["arguments"], content["parameters"], content["optimizers"]
    except Exception as error:  # torch raises whatever the damage leads to
        raise UsageError(f"{path} is no checkpoint of a distillation: {error}") from error
    different = sorted(key for key in arguments if theirs.get(key) != arguments[key])
    if different or {n: p.shape for n, p in saved.items()} != {t.name: t.parameter.shape for t in trained}:
        what = f"{different[0]} was {theirs.get(different[0])!r}" if different else "it trained other parameters"
        raise UsageError(f"{path} is the checkpoint of another run ({what}): delete it, or name another file")
    with torch.no_grad():
        for t in trained:
            t.parameter.copy_(saved[t.name])
    for optimizer, kept in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(kept)
    state = dict(content["state"])
    return RunState(**{**state, "losses": [(int(step), float(loss)) for step, loss in state["losses"]]})

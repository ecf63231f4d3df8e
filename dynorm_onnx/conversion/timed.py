"""The times of the original and of what it became."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from dynorm_onnx.runtime.arrays import Feeds
from dynorm_onnx.runtime.memory import lack_of_memory, session_bytes
from dynorm_onnx.runtime.session import Provider
from dynorm_onnx.runtime.timing import Timing
from dynorm_onnx.runtime.variants import time_within


def time_both(
    path: Path,
    original: ir.Model,
    written: ir.Model,
    feeds: Feeds,
    seconds: float,
    provider: Provider,
    fused: ir.Model | None,
) -> tuple[tuple[Timing, ...], tuple[str, ...]]:
    """The variants' times, measured in no more than about `seconds`; none where whole models do not fit in memory, with
    what the user must be told.

    `original` is the model of the file `path`, `fused` what onnxscript made of it, where that was converted.
    """
    needed = 2 * (session_bytes(original) + session_bytes(written)) if provider == "cpu" else 0
    lack = lack_of_memory(needed, "whole sessions of the variants")
    if lack is not None:
        return (), (f"not timed: {lack}",)
    return time_within(path, written, feeds, seconds, provider=provider, fused=fused), ()

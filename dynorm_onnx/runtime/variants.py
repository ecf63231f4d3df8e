"""The four variants that a conversion is timed in.

- original: the file as it was given, under ONNX Runtime's full optimisation;
- original-fused: the original at its best, which is the faster of that and of the file that onnxscript's
  `optimize_for_ort` makes of it (torch.onnx spells RMSNorm in a way that ONNX Runtime does not fuse itself);
- converted: the converted file as an ONNX Runtime without our library runs it, the functions' bodies inlined;
- converted-kernels: the same file with the custom-op library registered, where it is installed and the file has nodes
  for it: one that was written in standard operators has none.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx_ir as ir

from dynorm_onnx.errors import DynormError
from dynorm_onnx.graph.files.model_io import load
from dynorm_onnx.graph.replace.rewrite import count_replacements
from dynorm_onnx.runtime.arrays import Feeds
from dynorm_onnx.runtime.fuse import fuse_for_ort, same_outputs
from dynorm_onnx.runtime.session import Model, Provider, has_kernels, make_session
from dynorm_onnx.runtime.timing import Timing, time_variants

log = logging.getLogger(__name__)

ORIGINAL, FUSED, CONVERTED, KERNELS = "original", "original-fused", "converted", "converted-kernels"


def make_variants(
    original: Model,
    converted: Model,
    feeds: Feeds,
    *,
    provider: Provider = "cpu",
    threads: int | None = None,
    fused: ir.Model | None = None,
) -> dict[str, Any]:
    """The sessions to be timed, by variant; `fused` is what onnxscript made of the original, where that is known.

    `original-fused` is the session of the rewritten file here, and missing where onnxscript could not
    rewrite it or changed its outputs on `feeds`; time_model() chooses the better of it and `original`.
    `converted-kernels` is missing where no library serves the provider, or no node is one of its operators.
    """
    timed = functools.partial(make_session, provider=provider, threads=threads, spinning=True)
    sessions = {ORIGINAL: timed(original, kernels=False)}
    if fused is not None:
        sessions[FUSED] = timed(fused, kernels=False)
    elif (made := _fused_session(original, sessions[ORIGINAL], feeds, timed)) is not None:
        sessions[FUSED] = made
    sessions[CONVERTED] = timed(converted, kernels=False)
    if has_kernels(provider) and _has_replacements(converted):
        sessions[KERNELS] = timed(converted, kernels=True)
    return sessions


MOST_SECONDS, LEAST_SECONDS = 2.0, 0.1
"""Of timing one variant. A tiny model has run some hundred times in the least of it."""


def time_within(
    original: Model,
    converted: Model,
    feeds: Feeds,
    seconds: float,
    *,
    provider: Provider = "cpu",
    fused: ir.Model | None = None,
) -> tuple[Timing, ...]:
    """The timing rows of a conversion in about so many seconds in all, loading and fusing included, though no fewer
    than five rounds take, and at most MOST_SECONDS for each variant."""
    started = time.perf_counter()
    sessions = make_variants(original, converted, feeds, provider=provider, fused=fused)
    left = seconds - (time.perf_counter() - started)
    each = min(max(left / len(sessions), LEAST_SECONDS), MOST_SECONDS)
    return time_model(sessions, feeds, provider=provider, seconds=each)


def time_model(
    sessions: Mapping[str, Any], feeds: Feeds, *, provider: Provider = "cpu", seconds: float = MOST_SECONDS
) -> tuple[Timing, ...]:
    """The timing rows of the sessions that make_variants() made, on one batch of feeds."""
    timings = {timing.variant: timing for timing in time_variants(sessions, feeds, provider=provider, seconds=seconds)}
    best = min((timings[name] for name in (ORIGINAL, FUSED) if name in timings), key=lambda t: t.median_ms)
    timings[FUSED] = dataclasses.replace(best, variant=FUSED)
    return tuple(timings[name] for name in (ORIGINAL, FUSED, CONVERTED, KERNELS) if name in timings)


def _has_replacements(model: Model) -> bool:
    if isinstance(model, bytes):
        model = onnx.ModelProto.FromString(model)
    if isinstance(model, onnx.ModelProto):
        model = ir.from_proto(model)
    return count_replacements(model if isinstance(model, ir.Model) else load(model)) > 0


def _fused_session(original: Model, plain: Any, feeds: Feeds, timed: Callable[..., Any]) -> Any | None:
    """A session of the original after optimize_for_ort; None where that fails or changes the outputs."""
    try:
        made = timed(fuse_for_ort(original), kernels=False)
        return made if same_outputs(plain, made, feeds) else None
    except DynormError as failure:
        log.info("the original could not be fused: %s", failure)
        return None

"""The four variants that a conversion is timed in.

- original: the file as it was given, under ONNX Runtime's full optimisation;
- original-fused: the original at its best, which is the faster of that and of the file that onnxscript's
  `optimize_for_ort` makes of it (torch.onnx spells RMSNorm in a way that ONNX Runtime does not fuse itself);
- converted: the converted file as any ONNX Runtime runs it, the functions' bodies inlined;
- converted-kernels: the same file with the custom-op library registered, where it is installed.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from dynorm_onnx.errors import DynormError
from dynorm_onnx.runtime.arrays import Feeds, is_float, run
from dynorm_onnx.runtime.measures import OutputSums
from dynorm_onnx.runtime.session import Model, Provider, has_kernels, make_session
from dynorm_onnx.runtime.timing import Timing, time_variants

log = logging.getLogger(__name__)

ORIGINAL, FUSED, CONVERTED, KERNELS = "original", "original-fused", "converted", "converted-kernels"

_SAME = {"float64": 1e-6, "float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
"""The relative error up to which a fused model computes the same: orders of summation differ, deep in."""


def make_variants(
    original: Model, converted: Model, feeds: Feeds, *, provider: Provider = "cpu", threads: int | None = None
) -> dict[str, Any]:
    """The sessions to be timed, by variant.

    `original-fused` is the session of the rewritten file here, and missing where onnxscript could not
    rewrite it or changed its outputs on `feeds`; time_model() chooses the better of it and `original`.
    `converted-kernels` is missing where no library serves the provider.
    """
    sessions = {ORIGINAL: make_session(original, provider=provider, kernels=False, threads=threads)}
    fused = _fused_session(original, sessions[ORIGINAL], feeds, provider, threads)
    if fused is not None:
        sessions[FUSED] = fused
    sessions[CONVERTED] = make_session(converted, provider=provider, kernels=False, threads=threads)
    if has_kernels(provider):
        sessions[KERNELS] = make_session(converted, provider=provider, kernels=True, threads=threads)
    return sessions


def time_model(
    sessions: Mapping[str, Any], feeds: Feeds, *, provider: Provider = "cpu", seconds: float = 2.0
) -> tuple[Timing, ...]:
    """The timing rows of the sessions that make_variants() made, on one batch of feeds."""
    timings = {timing.variant: timing for timing in time_variants(sessions, feeds, provider=provider, seconds=seconds)}
    best = min((timings[name] for name in (ORIGINAL, FUSED) if name in timings), key=lambda t: t.median_ms)
    timings[FUSED] = dataclasses.replace(best, variant=FUSED)
    return tuple(timings[name] for name in (ORIGINAL, FUSED, CONVERTED, KERNELS) if name in timings)


def _fused_session(original: Model, plain: Any, feeds: Feeds, provider: Provider, threads: int | None) -> Any | None:
    """A session of the original after optimize_for_ort; None where that fails or changes the outputs."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort  # takes a second to import

    try:
        model, counts = optimize_for_ort(_private_copy(original))
    except Exception as error:  # whatever the rewriter trips over, the plain file is still there
        log.info("onnxscript could not fuse the original: %s", error)
        return None
    try:
        session = make_session(model, provider=provider, kernels=False, threads=threads)
        excess = _largest_excess(run(plain, feeds), run(session, feeds))
    except DynormError as failure:
        log.info("the original as onnxscript fused it does not run: %s", failure)
        return None
    if not excess <= 1:
        log.info("the original as onnxscript fused it has other outputs: %.3g times what is allowed", excess)
        return None
    log.info("onnxscript fused the original: %s", {name: n for name, n in counts.items() if n})
    return session


def _private_copy(model: Model) -> ir.Model:
    """A model that may be changed; weights are shared."""
    if isinstance(model, ir.Model):
        return model.clone()
    if isinstance(model, bytes):
        return ir.from_proto(onnx.ModelProto.FromString(model))
    return ir.from_proto(model) if isinstance(model, onnx.ModelProto) else ir.load(model)


def _largest_excess(expected: Feeds, got: Feeds) -> float:
    """The largest relative error of a float output in units of what its type allows."""
    if set(expected) != set(got) or any(expected[name].shape != got[name].shape for name in expected):
        return math.inf
    excess = [
        OutputSums.of(array, got[name], None).error().relative_error / _SAME[array.dtype.name]
        if is_float(array)
        else (math.inf if np.any(array != got[name]) else 0.0)
        for name, array in expected.items()
        if array.size
    ]
    return max(excess, default=0.0)

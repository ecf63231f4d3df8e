"""A whole model in its four variants: original, original-fused, converted, converted-kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from dynorm_onnx.bench.operators import random_parameters
from dynorm_onnx.calibration.data.drawn_inputs import draw_samples
from dynorm_onnx.calibration.data.missing import complete
from dynorm_onnx.calibration.data.sampling_cached import cache_grows
from dynorm_onnx.calibration.data.signature import ModelSignature, signature
from dynorm_onnx.errors import NoSiteError, UsageError
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.lower import lower
from dynorm_onnx.graph.replace.rewrite import count_replacements, replace
from dynorm_onnx.graph.replace.written import as_written
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.runtime.arrays import Feeds, run
from dynorm_onnx.runtime.fuse import fused_or_not
from dynorm_onnx.runtime.session import Provider, runnable
from dynorm_onnx.runtime.timing import Timing
from dynorm_onnx.runtime.value_types import value_types
from dynorm_onnx.runtime.variants import FUSED, ORIGINAL, make_variants, time_model

PREFILL, DECODE = "prefill", "decode"


@dataclasses.dataclass(frozen=True)
class ModelRow:
    """The time of one variant for one kind of batch."""

    batch: str  # "prefill 1x128", "decode 1x1 after 128"
    variant: str
    provider: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    speedup_over_fused: float  # above 1: faster than the original at its best


def bench_model(
    original: Path,
    converted: Path | ir.Model,
    rows: tuple[tuple[int, int], ...],
    *,
    provider: Provider = "cpu",
    threads: int | None = None,
    seconds: float = 2.0,
) -> Iterator[ModelRow]:
    """Measure the variants of a model on each size; rows come as they are measured.

    Args:
        original, converted: the model and what became of it; see make_untrained() for a stand-in.
        rows: (batch, length) of the prompts; a size that the model fixes takes the place of one asked for.
            After each prompt, one token is decoded: with the cache that the prompt left where the model
            has past keys and values, and alone where only its sequence axis is free.
        provider, threads, seconds: as in make_session() and time_variants().
    """
    loaded = model_io.prepare(model_io.load(original), value_types)
    what = signature(loaded)
    sizes = tuple(dict.fromkeys((what.fixed_batch or b, what.fixed_length or n) for b, n in rows))
    sessions = make_variants(
        original, converted, prompt(what, loaded.graph, *sizes[0]), provider=provider, threads=threads
    )
    for batch, length in sizes:
        for title, feeds in _batches(what, loaded.graph, sessions[ORIGINAL], batch, length):
            timings = time_model(sessions, feeds, provider=provider, seconds=seconds)
            fused = next(timing.median_ms for timing in timings if timing.variant == FUSED)
            yield from (_row(title, timing, fused) for timing in timings)


def is_replaced(model: Path) -> bool:
    """Whether a file holds our functions already: one that was converted, or exported from PyTorch."""
    return count_replacements(model_io.load(model)) > 0


def make_untrained(original: Path, to: str, *, optimize: str = "auto") -> ir.Model:
    """The model with every norm replaced and random parameters: useless, and exactly as fast as a good one.

    `optimize` is as in ConvertConfig, but that what fusing does to the outputs is not looked at. Raises NoSiteError
    where the model has no norm, UsageError for an unknown function, ModelError where it cannot be fused.
    """
    if to not in REGISTRY:
        raise UsageError(f"--to {to!r} is not one of {', '.join(REGISTRY)}")
    loaded = model_io.load(original)
    fused = fused_or_not(loaded, optimize)
    model = model_io.prepare(fused, value_types)
    sites = find_sites(model, load=runnable).sites
    if not sites:
        raise NoSiteError(f"{original}: no norm was found that could be replaced")
    rng = np.random.default_rng(0)
    for norm in lower(model, sites):
        replace(model, norm, to, random_parameters(REGISTRY[to], norm.weight.size, rng))
    return as_written(model, inline=False, fused=fused is not loaded)


def prompt(what: ModelSignature, graph: ir.Graph, batch: int, length: int, seed: int = 0) -> Feeds:
    """Random inputs [batch, length] for all that the model takes; never zeros where it could be numbers."""
    rng = np.random.default_rng(seed)
    if what.tokens is None:
        samples = draw_samples(what, graph, rng, count=1, length=length)
        return complete(samples[0], what, rng)
    shape = (batch, length) if what.tokens.batch_axis == 0 else (length,)
    ids = rng.integers(0, what.tokens.bound or 2, shape)
    return complete({what.tokens.name: ids}, what, rng)


def _batches(
    what: ModelSignature, graph: ir.Graph, session: Any, batch: int, length: int
) -> Iterator[tuple[str, Feeds]]:
    """The prompt, and one token after it where the model allows that."""
    feeds = prompt(what, graph, batch, length)
    yield f"{PREFILL} {batch}x{length}", feeds
    if what.tokens is None or what.fixed_length is not None:
        return
    if not cache_grows(what):
        yield f"{DECODE} {batch}x1, no cache", prompt(what, graph, batch, 1)
        return
    presents = run(session, feeds, list(what.presents.values()))
    token = prompt(what, graph, batch, 1, seed=1)[what.tokens.name]
    past = {name: presents[present] for name, present in what.presents.items()}
    step = complete({what.tokens.name: token, **past}, what, np.random.default_rng(0))
    yield f"{DECODE} {batch}x1 after {length}", step


def _row(title: str, timing: Timing, fused_ms: float) -> ModelRow:
    return ModelRow(
        title,
        timing.variant,
        timing.provider,
        timing.median_ms,
        timing.p10_ms,
        timing.p90_ms,
        fused_ms / timing.median_ms,
    )

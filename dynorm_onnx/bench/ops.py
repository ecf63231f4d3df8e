"""Operators against each other: ONNX Runtime's fused norms, a copy, and our functions in both speeds."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import onnx

from dynorm_onnx.bench.operators import COPY, LAYER_NORM, RMS_NORM, OperatorModel
from dynorm_onnx.errors import ModelError, ProviderError
from dynorm_onnx.functions import REGISTRY, Form
from dynorm_onnx.runtime.placement import placement
from dynorm_onnx.runtime.session import Provider, has_kernels, make_session
from dynorm_onnx.runtime.timing import time_variants

log = logging.getLogger(__name__)

BASELINES = (RMS_NORM, LAYER_NORM, COPY)
BODY, KERNEL = "body", "kernel"


@dataclasses.dataclass(frozen=True)
class OpsGrid:
    """What is measured: the product of these; `coupled` is how many channels of the functions' coupled forms stay in
    the sum, each a row of its own beside the plain form."""

    rows: tuple[tuple[int, int], ...] = ((1, 1), (1, 16), (1, 128), (8, 128), (8, 512))
    channels: tuple[int, ...] = (768, 2048, 4096)
    dtypes: tuple[str, ...] = ("float32",)
    skips: tuple[bool, ...] = (False, True)
    chains: tuple[int, ...] = (1, 12)
    coupled: tuple[int, ...] = ()

    def models(self) -> Iterator[OperatorModel]:
        """One model per cell of the grid, rows apart."""
        product = itertools.product(self.dtypes, self.channels, self.skips, self.chains)
        return (OperatorModel(channels, dtype, skip, chain) for dtype, channels, skip, chain in product)


@dataclasses.dataclass(frozen=True)
class OpsRow:
    """The time of one operator in one cell; times are those of the whole chain."""

    operator: str  # "RMSNorm", "LayerNorm", "copy", or a function's operator, what is coupled, and how it runs
    rows: str  # "8x128"
    channels: int
    dtype: str
    skip: bool
    chain: int
    provider: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    speedup_over_rmsnorm: float | None  # above 1: faster; None where there is no such baseline
    speedup_over_copy: float | None


def bench_ops(
    grid: OpsGrid,
    *,
    provider: Provider = "cpu",
    threads: int | None = None,
    seconds: float = 0.3,
    cuda_graph: bool = False,
) -> Iterator[OpsRow]:
    """Measure every cell of the grid; rows come as they are measured.

    Operators that ONNX Runtime has no kernel for in a type (bfloat16 on the CPU, mostly) have no row, nor
    have our kernels where no custom-op library is installed. With `cuda_graph`, the operators of a run are
    launched together, as one captured graph: what they cost without the time it takes to launch them one by one.
    """
    for model in grid.models():
        sessions = _sessions(model, grid.coupled, provider, threads, cuda_graph)
        for batch, length in grid.rows:
            feeds = model.feeds(batch, length)
            timings = {t.variant: t for t in time_variants(sessions, feeds, provider=provider, seconds=seconds)}
            for name, timing in timings.items():
                ratios = [
                    timings[base].median_ms / timing.median_ms if base in timings else None for base in (RMS_NORM, COPY)
                ]
                cell = (f"{batch}x{length}", model.channels, model.dtype, model.skip, model.chain, provider)
                yield OpsRow(name, *cell, timing.median_ms, timing.p10_ms, timing.p90_ms, *ratios)


def _sessions(
    model: OperatorModel, coupled: tuple[int, ...], provider: Provider, threads: int | None, cuda_graph: bool
) -> dict[str, Any]:
    options = _provider_options(provider, cuda_graph)

    def session(proto: onnx.ModelProto, *, kernels: bool = False) -> Any:
        return make_session(
            proto, provider=provider, kernels=kernels, threads=threads, spinning=True, provider_options=options
        )

    sessions = {}
    for name in BASELINES:
        proto = model.baseline(name)
        try:
            made = session(proto)
        except (ModelError, ProviderError) as error:  # no kernel at all, or one on another provider only
            log.info("no %s in %s on %s: %s", name, model.dtype, provider, error)
            continue
        if _is_whole(made, proto):
            sessions[name] = made
        else:
            log.info("no %s in %s on %s: it was taken apart", name, model.dtype, provider)
    for (name, function), count in itertools.product(REGISTRY.items(), (0, *coupled)):
        op_type = function.node_type(Form(model.skip, count > 0))
        operator = f"{op_type} k={count}" if count else op_type
        proto = model.function(name, count)
        sessions[f"{operator} {BODY}"] = session(proto)
        if has_kernels(provider):
            sessions[f"{operator} {KERNEL}"] = session(proto, kernels=True)
    return sessions


def _provider_options(provider: Provider, cuda_graph: bool) -> dict[str, str]:
    """On CUDA, memory as it is needed: sessions that keep twice of it would not fit beside each other."""
    if provider != "cuda":
        return {}
    return {"arena_extend_strategy": "kSameAsRequested"} | ({"enable_cuda_graph": "1"} if cuda_graph else {})


def _is_whole(session: Any, model: onnx.ModelProto) -> bool:
    """Whether the model's operators run as they are: LayerNormalization, itself a function, can be inlined."""
    nodes = placement(session)
    return nodes is None or {node.op_type for node in model.graph.node} <= {node.op_type for node in nodes}

"""Exact folds within a conversion, and the random input that they are proved on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.data import signature
from dynorm_onnx.calibration.data.drawn_inputs import draw_samples
from dynorm_onnx.calibration.data.missing import complete
from dynorm_onnx.graph.fold import Folds, Parity, fold_centring
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.norm_site import SitesFound
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.pieces import open_for_batches
from dynorm_onnx.runtime.session import Provider

PROOF_LENGTH = 16
"""Tokens of the random input; sizes that the model fixes take its place."""


def centring_folded(
    lowered: ir.Model, norms: Sequence[LoweredNorm], found: SitesFound, parity: Parity, *, reductions: bool
) -> tuple[tuple[LoweredNorm, ...], Folds]:
    """The norms of the lowered model, which changes in place, after the folds that are exact and pay.

    Those in bodies stay as they are: a stream does not lead into a body. `reductions` is as for fold_centring().
    """
    kept = _kept_nodes(found, lowered)
    outside = [norm for norm in norms if norm.node.graph is lowered.graph]
    folded, folds = fold_centring(lowered, outside, parity, invariant=kept, reductions=reductions)
    return (*folded, *(norm for norm in norms if norm not in outside)), folds


def parity_on_drawn(seed: int, provider: Provider) -> Parity:
    """Compares two models on inputs that are drawn by their signature."""

    def outputs(model: ir.Model) -> list[np.ndarray]:
        what, rng = signature(model), np.random.default_rng(seed)
        sample = draw_samples(what, model.graph, rng, count=1, length=PROOF_LENGTH)[0]
        session = open_for_batches(model, provider=provider)
        return list(run(session, complete(sample, what, rng)).values())

    return Parity(outputs)


def _kept_nodes(found: SitesFound, lowered: ir.Model) -> Collection[ir.Node]:
    """The nodes of LayerNorms over the last axis that were not lowered: what they read may lose its mean."""

    def nodes() -> Iterator[ir.Node]:
        for site in found.sites:
            if site.kind == "layer" and site.axes == (-1,) and site.x is not None and site.residual is None:
                yield from (node for node in site.nodes if node.graph is lowered.graph)

    return frozenset(nodes())

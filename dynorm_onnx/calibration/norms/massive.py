"""Whether a model has massive activations, for which a function of single channels cannot stand in (docs/quality.md).

From some layer on, many language models hold one token, mostly the first, whose length is many times that of all
others, nearly all of it in one or two channels (Sun et al., arXiv 2402.17762). A norm mutes the other channels of such
a token, and attention uses it as a sink. Where there are such tokens, channels are coupled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.norms.coupling import squared_lengths
from dynorm_onnx.calibration.norms.observe import observe, rows_seen
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.runtime.arrays import Feeds

log = logging.getLogger(__name__)

SINKS = 20.0
"""Where tokens are so many times as long as the median, attention uses them as sinks, and a model is not left to
functions of single channels. Between coupling.MASSIVE and this it loses something that coupled channels would keep, but
it works.
"""

LOOKED_AT = 4  # batches


def massive_sites(
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    batches: Sequence[Feeds],
    progress: Callable[[int, int], None],
) -> set[str]:
    """The sites in the main graph whose longest token is SINKS times as long as the median, or more.

    The original is run over the first few batches.
    """
    found: set[str] = set()
    for observed in observe(lowered, norms, batches[:LOOKED_AT], progress):
        norm, _ = observed
        squares = [squared_lengths(norm.kind, norm.epsilon, rows) for rows in rows_seen(observed)]
        if has_sinks(norm.site_name, squares):
            found.add(norm.site_name)
    return found


def has_sinks(name: str, squares: Sequence[np.ndarray]) -> bool:
    """Whether the longest token of a norm is SINKS times as long as the median: by their squared lengths, [T] each."""
    joined = np.sqrt(np.concatenate(squares)) if squares else np.zeros(0)
    ratio = float(joined.max() / max(np.median(joined), 1e-30)) if len(joined) else 0.0
    if ratio >= SINKS:
        log.info("%s: its longest token is %.0f times as long as the median", name, ratio)
    return ratio >= SINKS

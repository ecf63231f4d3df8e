"""How many channels each norm's replacement may couple: what was asked for, or what the model needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from dynorm_onnx.calibration.fit_rows import Leeway
from dynorm_onnx.calibration.massive import massive_sites
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.runtime.arrays import Feeds

MOST_COUPLED = 32
"""Where channels must be coupled and nobody said how many: a kernel reads so many of a row in passing
(docs/kernels.md).
"""


def leeways(
    coupled: int | None,
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    batches: Sequence[Feeds],
    progress: Callable[[int, int], None],
    *,
    fades: bool = False,
) -> dict[str, Leeway]:
    """By site, the leeway of its fit. `coupled` None: MOST_COUPLED at all norms over as many channels as one that sees
    massive tokens, none at others, so that a model without any stays one of single channels. `fades`: a training
    follows in which channels fade to `coupled`, and it begins with what the model needs if that is more."""
    if coupled is not None and not fades:
        return {norm.site_name: Leeway(coupled) for norm in norms}
    massive = massive_sites(lowered, norms, batches, progress)
    streams = {norm.channels for norm in norms if norm.site_name in massive}
    least = coupled or 0
    return {norm.site_name: Leeway(max(least, MOST_COUPLED * (norm.channels in streams))) for norm in norms}

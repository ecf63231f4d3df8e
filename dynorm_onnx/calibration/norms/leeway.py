"""How many channels each norm's replacement may couple: what was asked for, or what the model needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import onnx_ir as ir

from dynorm_onnx.calibration.norms.fit_rows import Leeway
from dynorm_onnx.calibration.norms.massive import massive_sites
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
    in_bodies: Collection[str] = (),
) -> dict[str, Leeway]:
    """By site, the leeway of its fit; see leeways_of(). The original is run over the first few batches.

    `in_bodies` are the sites in bodies that see sinks.
    """
    massive = massive_sites(lowered, norms, batches, progress) | set(in_bodies)
    return leeways_of(coupled, massive, {norm.site_name: norm.channels for norm in norms}, fades=fades)


def leeways_of(
    coupled: int | None, massive: Collection[str], channels: Mapping[str, int | None], *, fades: bool = False
) -> dict[str, Leeway]:
    """The leeway of every norm, from the names of those that see sinks and the channels of all.

    A stream, here all norms over as many channels, has sinks where one of its norms sees them. `coupled` None: all
    norms of a model with such a stream couple MOST_COUPLED channels at most, those of others none. (Queries and keys
    see no sinks, but with pure functions there a model that has them elsewhere is lost: docs/quality.md.) `fades`: a
    training follows in which channels fade to `coupled`; it begins with what the model needs if that is more.
    """
    streams = {channels[name] for name in massive}
    needed = MOST_COUPLED if streams else 0

    def leeway(has_sinks: bool) -> Leeway:
        if coupled is None:
            return Leeway(needed, has_sinks)
        return Leeway(max(coupled, needed) if fades else coupled, has_sinks)

    return {name: leeway(size in streams) for name, size in channels.items()}

"""What a rotation of a stream is sought on: tokens in front of each of its norms, and how their errors count behind it.

An error in what a norm puts out counts as much as the layers that read it make of it: e G e^T with G the sum of W W^T
over them, the norm's weight moved into each W.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.norms.coupling import UNCOUPLED, choose_coupling, squared_lengths
from dynorm_onnx.calibration.norms.fit_rows import Leeway, steeper
from dynorm_onnx.calibration.norms.one_parameter import norm_core
from dynorm_onnx.calibration.norms.rows import Rows
from dynorm_onnx.calibration.rotation.seen import MASSIVE_SHARE, Seen, seen_at
from dynorm_onnx.errors import ModelError
from dynorm_onnx.functions.coupling import applied
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.streams.basis import StreamBasis
from dynorm_onnx.graph.values.mapped import let_go
from dynorm_onnx.runtime.arrays import Feeds

LOOKED_AT = 32_768
"""Tokens of the calibration data that the original is run on."""

SAMPLED = 4096  # of them, at each norm
MEMORY = 1 << 28  # bytes of the sampled tokens of a stream, at most

_BLOCK = 1 << 22  # elements of a weight that are squared at a time, in float64


@dataclasses.dataclass(frozen=True, eq=False)
class NormTokens:
    """Tokens at one norm of a stream.

    `x` [T, C] is what it reads, in units of the root mean square of the median token, and `target` [T, C] what it puts
    out without weight and bias; float32. `metric` [C, C] float32 is G in units in which the target itself has length 1
    on average, so that an error is relative. `held_out` bool [T] are those that nothing is solved with; `axes`, [C]
    bool, are channels that stay as they are.

    Where channels may be coupled, x is the one behind the gain of those that fit would couple, and they are the axes.
    Else axes are the channels that make massive tokens massive, and such tokens are left out: no function of single
    channels follows a norm there. `steeper` is by how much a fit makes the function steeper than least squares asks.
    """

    norm: LoweredNorm
    x: np.ndarray
    target: np.ndarray
    metric: np.ndarray
    held_out: np.ndarray
    axes: np.ndarray
    steeper: float


def tokens_of_streams(
    lowered: ir.Model,
    bases: Sequence[StreamBasis],
    batches: Sequence[Feeds],
    leeway: Mapping[str, Leeway],
    rng: np.random.Generator,
    progress: Callable[[int, int], None],
) -> dict[StreamBasis, list[NormTokens]]:
    """The tokens at the norms of each stream, in the order of the graph; a norm that no token reaches is left out."""
    basis_of = {norm: basis for basis in bases for norm in basis.read}
    most = {basis: min(SAMPLED, MEMORY // (8 * basis.channels * len(basis.read))) for basis in bases}
    found: dict[StreamBasis, list[NormTokens]] = {basis: [] for basis in bases}
    for seen in seen_at(lowered, list(basis_of), batches, LOOKED_AT, progress):
        basis = basis_of[seen.norm]
        metric = _metric(lowered, basis, seen.norm)
        found[basis].append(_tokens(seen, metric, most[basis], leeway[seen.norm.site_name], rng))
    return found


def _tokens(seen: Seen, metric: np.ndarray, most: int, own: Leeway, rng: np.random.Generator) -> NormTokens:
    norm, x = seen.norm, seen.x
    axes, ordinary, chosen = np.zeros(x.shape[1], bool), np.ones(len(x), bool), UNCOUPLED
    if own.most_coupled:
        rows = Rows(x, x, np.ones(len(x), np.float32), seen.held_out)
        chosen = choose_coupling(norm.kind, norm.epsilon, lambda: iter([rows]), own.most_coupled)
        axes[[] if chosen.coupling is None else chosen.coupling.channels] = True
    else:
        axes, ordinary = seen.massive_shares > MASSIVE_SHARE, ~seen.massive
    sample = seen.sampled(ordinary, most, rng)
    target = norm_core(norm.kind, x[sample], norm.epsilon)
    x = applied(chosen.coupling, x)
    unit = np.sqrt(np.median(squared_lengths(norm.kind, norm.epsilon, x)) / x.shape[1])
    size = float(((target @ metric) * target).sum(1).mean())
    return NormTokens(
        norm,
        x=(x[sample] / unit).astype(np.float32),
        target=target.astype(np.float32),
        metric=(metric / max(size, 1e-300)).astype(np.float32),
        held_out=seen.held_out[sample],
        axes=axes,
        steeper=1.0 if own.straight else steeper(chosen),
    )


def _metric(lowered: ir.Model, basis: StreamBasis, norm: LoweredNorm) -> np.ndarray:
    """G [C, C] float64, of the layers behind the norm with its weight moved into them."""
    total = np.zeros((basis.channels, basis.channels))
    readers = [(name, basis.readers[name]) for name in basis.read[norm]]
    heads = [(head.weight, basis.writers[head.weight]) for head in basis.heads if head.norm is norm]
    for name, axis in (*readers, *heads):
        value = lowered.graph.initializers[name]
        product = _products(value, axis)
        let_go(value)
        if not np.all(np.isfinite(product)):
            raise ModelError(f"the weight {name!r}, which reads {norm.site_name}, holds numbers that are not finite")
        total += product
    weight = np.asarray(norm.weight, np.float64)
    return np.asarray(weight[:, None] * total * weight)


def _products(value: ir.Value, axis: int) -> np.ndarray:
    """W W^T [C, C] of a weight whose `axis` is over the channels, a few rows in float64 at a time."""
    assert value.const_value is not None
    rows = np.moveaxis(value.const_value.numpy(), axis, -1)
    channels = rows.shape[-1]
    rows = rows.reshape(-1, channels)
    total, step = np.zeros((channels, channels)), max(_BLOCK // channels, 1)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(np.float64)
        total += block.T @ block
    return total

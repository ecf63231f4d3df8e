"""What the norms of a model see: their inputs, site by site, without holding activations.

The graph is cut at the norms and run stage by stage, as calibration does it; nothing is solved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.data import signature
from dynorm_onnx.calibration.norms.calibrate import body_point, by_place, norm_point
from dynorm_onnx.calibration.stages.plan import SolvePoint
from dynorm_onnx.calibration.stages.run_stages import Activations, StageRunner
from dynorm_onnx.calibration.stages.weights import row_weights, token_weights
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.runtime.arrays import Feeds

Observed = tuple[LoweredNorm, Callable[[], Iterator[Activations]]]


def observe(
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    batches: Sequence[Feeds],
    progress: Callable[[int, int], None],
    converted: ir.Model | None = None,
) -> Iterator[Observed]:
    """Each norm of the main graph, in its order, with its input x in the lowered model, batch by batch.

    The batches of one norm can be read as often as one likes until the next norm is asked for. With
    `converted`, a clone of the lowered model whose norms were replaced in their plain form, those in bodies too, the
    same x of that model comes along.
    """
    outside, inside = by_place(lowered.graph, norms)
    points, by_point = [body_point(holder) for holder in inside], {}
    for norm in outside:
        at = norm_point(norm)
        x = (str(norm.x.name),)
        points.append(SolvePoint(at.name, at.nodes, original=x, converted=x if converted is not None else ()))
        by_point[at.name] = norm
    tokens = signature(lowered).tokens
    kept = [token_weights(feeds, tokens.name if tokens else None, causal=False) for feeds in batches]
    with StageRunner(lowered, converted or lowered, points, batches, token_weights=kept) as runner:
        for point in runner.points(progress):
            if point.name in by_point:
                yield by_point[point.name], runner.activations


def usable_rows(x: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    """Bool [rows]: the rows of x [..., C], flattened, that are no padding (`kept` 0) and finite throughout."""
    finite = np.isfinite(np.asarray(x, np.float32).reshape(-1, x.shape[-1])).all(axis=1)
    return np.asarray(finite & (row_weights(kept, x) > 0))


def rows_seen(observed: Observed) -> Iterator[np.ndarray]:
    """Usable rows of x in the lowered model, [tokens, C] in the type of the model, batch by batch."""
    norm, activations = observed
    for batch in activations():
        x = batch.original[str(norm.x.name)]
        yield x.reshape(-1, x.shape[-1])[usable_rows(x, batch.token_weights)]


def sampled_rows(observed: Observed, most: int, rng: np.random.Generator) -> np.ndarray:
    """Usable rows of x in the lowered model, [tokens, C] float64; of over `most` elements a random choice."""
    batches = list(rows_seen(observed))
    share = most / max(sum(rows.size for rows in batches), 1)
    chosen = [rng.choice(rows, int(len(rows) * share), replace=False) if share < 1 else rows for rows in batches]
    return np.concatenate(chosen).astype(np.float64)

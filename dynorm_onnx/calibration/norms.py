"""Fit every norm in turn, on the activations of the already converted model, towards the original's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.fit import Fit, fit
from dynorm_onnx.calibration.moments import Moments, Range, moments_of
from dynorm_onnx.calibration.plan import SolvePoint
from dynorm_onnx.calibration.stages import Activations, StageRunner
from dynorm_onnx.calibration.weights import row_weights, weights_of_batches
from dynorm_onnx.functions import Function
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.model_io import clone
from dynorm_onnx.graph.rewrite import replace
from dynorm_onnx.runtime.arrays import Feeds

STEEPER = 3.0
"""Steepness relative to that of least squared error. A norm takes no notice of its input's length; a
function of single channels does, the less the more it saturates. Least squares sees one norm at a time
and chooses nearly straight lines, through which an error in length runs on and grows from layer to layer
(docs/quality.md has the measurements)."""


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """The outcome of a calibration: a Fit for each site, and the weights that changed with them.

    `initializers` maps the names of re-fitted weights to their new values, in their own types: arrays, or tensors
    that are read when used where all together would be too much to hold.
    """

    fits: dict[str, Fit]
    initializers: dict[str, np.ndarray | ir.TensorProtocol] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


# Solves one point in the converted model, reading activations as often as it likes.
Solver = Callable[[ir.Model, Callable[[], Iterator[Activations]]], None]


def calibrate_norms(
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    function: Function,
    batches: Sequence[Feeds],
    progress: Callable[[int, int], None],
) -> Calibrated:
    """Method "fit": the parameters of every norm, nothing else. `lowered` is not changed."""
    fits: dict[str, Fit] = {}
    solve_in_order(lowered, norm_solvers(norms, function, fits), batches, progress)
    return Calibrated(fits)


def solve_in_order(
    lowered: ir.Model,
    solvers: Sequence[tuple[SolvePoint, Solver]],
    batches: Sequence[Feeds],
    progress: Callable[[int, int], None],
) -> None:
    """Solve every point, in graph order, on what the points before it left of a clone of the model."""
    converted = clone(lowered)
    by_name = {point.name: solve for point, solve in solvers}
    points = [point for point, _ in solvers]
    weights = weights_of_batches(lowered, batches)
    with StageRunner(lowered, converted, points, batches, token_weights=weights) as runner:
        for point in runner.points(progress):
            by_name[point.name](converted, runner.activations)


def norm_solvers(
    norms: Sequence[LoweredNorm], function: Function, fits: dict[str, Fit]
) -> list[tuple[SolvePoint, Solver]]:
    """A point and a solver for each norm; the solver puts the function in place and its Fit into `fits`."""

    def solver(norm: LoweredNorm) -> Solver:
        def solve(converted: ir.Model, activations: Callable[[], Iterator[Activations]]) -> None:
            fits[norm.site_name] = solve_norm(norm, function, activations)
            put_in_place(converted, norm, function, fits[norm.site_name])

        return solve

    return [(norm_point(norm), solver(norm)) for norm in norms]


def norm_point(norm: LoweredNorm) -> SolvePoint:
    """A norm as a place to solve: its input in the converted model, its output in the original."""
    x, y = str(norm.x.name), str(norm.y.name)
    return SolvePoint(y, (norm.node,), original=(y,), converted=(x,))


def solve_norm(norm: LoweredNorm, function: Function, activations: Callable[[], Iterator[Activations]]) -> Fit:
    """The fit of one norm over all batches, in two passes: the range of x, then its moments."""
    x, y = str(norm.x.name), str(norm.y.name)
    extent = functools.reduce(Range.merge, (Range.of(batch.converted[x]) for batch in activations()))
    moments = functools.reduce(
        Moments.merge,
        (
            moments_of(
                batch.converted[x], batch.original[y], extent, row_weights(batch.token_weights, batch.converted[x])
            )
            for batch in activations()
        ),
    )
    return fit(function, moments, extent, STEEPER)


def put_in_place(model: ir.Model, norm: LoweredNorm, function: Function, fitted: Fit) -> None:
    """Replace the norm in `model`, a clone of the one it is of, by the fitted function in its plain form.

    During calibration every value must keep its name and its producer.
    """
    replace(model, dataclasses.replace(norm, skip=None), function.name, fitted.parameters)

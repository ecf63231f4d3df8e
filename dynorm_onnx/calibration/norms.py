"""Fit every norm in turn, on the activations of the already converted model, towards the original's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.data import signature
from dynorm_onnx.calibration.fit import Fit
from dynorm_onnx.calibration.fit_rows import Leeway, fit_norm
from dynorm_onnx.calibration.held_out import held_out_samples
from dynorm_onnx.calibration.plan import SolvePoint
from dynorm_onnx.calibration.rows import Rows
from dynorm_onnx.calibration.stages import Activations, StageRunner, require_pairs
from dynorm_onnx.calibration.weights import weights_of_batches
from dynorm_onnx.functions import Function
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.model_io import clone
from dynorm_onnx.graph.reads import holders_of, path_to
from dynorm_onnx.graph.rewrite import replace
from dynorm_onnx.runtime.arrays import Feeds


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
    leeway: Mapping[str, Leeway],
    in_bodies: Mapping[str, Fit] | None = None,
) -> Calibrated:
    """Method "fit": the parameters of every norm, nothing else. `lowered` is not changed.

    `leeway` says by site how many channels may stay coupled and how steep the function is made; `in_bodies` has the
    fits of norms in bodies, which are only put in their place.
    """
    fits: dict[str, Fit] = {}
    solve_in_order(lowered, norm_solvers(lowered, norms, function, fits, leeway, in_bodies), batches, progress)
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
    held_out = held_out_samples(batches, outermost=signature(lowered).has_samples_outermost)
    with StageRunner(lowered, converted, points, batches, token_weights=weights, held_out=held_out) as runner:
        for point in runner.points(progress):
            by_name[point.name](converted, runner.activations)


def norm_solvers(
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    function: Function,
    fits: dict[str, Fit],
    leeway: Mapping[str, Leeway],
    in_bodies: Mapping[str, Fit] | None = None,
) -> list[tuple[SolvePoint, Solver]]:
    """A point and a solver for each norm, or for all in the bodies of one node; the solver puts the functions in place
    and each Fit into `fits`."""

    def solver(norm: LoweredNorm) -> Solver:
        def solve(converted: ir.Model, activations: Callable[[], Iterator[Activations]]) -> None:
            fitted = fit_norm(norm, function, functools.partial(rows_of_norm, norm, activations), leeway)
            fits[norm.site_name] = fitted
            put_in_place(converted, norm, function, fitted)

        return solve

    def putter(members: Sequence[LoweredNorm]) -> Solver:
        def put(converted: ir.Model, _: Callable[[], Iterator[Activations]]) -> None:
            for norm in members:
                fits[norm.site_name] = (in_bodies or {})[norm.site_name]
                put_in_place(converted, norm, function, fits[norm.site_name])

        return put

    outside, inside = by_place(lowered.graph, norms)
    solvers = [(norm_point(norm), solver(norm)) for norm in outside]
    return solvers + [(body_point(holder), putter(members)) for holder, members in inside.items()]


def by_place(
    graph: ir.Graph, norms: Sequence[LoweredNorm]
) -> tuple[list[LoweredNorm], dict[ir.Node, list[LoweredNorm]]]:
    """The norms that lie in the main graph itself, and the others by the node of it whose bodies they lie in."""
    outside, inside = [norm for norm in norms if norm.node.graph is graph], dict[ir.Node, list[LoweredNorm]]()
    if len(outside) < len(norms):
        holders = holders_of(graph)
        for norm in norms:
            if path := path_to(norm.node, holders):
                inside.setdefault(path[-1][0], []).append(norm)
    return outside, inside


def norm_points(graph: ir.Graph, norms: Sequence[LoweredNorm]) -> list[SolvePoint]:
    """Where the norms make the two models differ."""
    outside, inside = by_place(graph, norms)
    return [*(norm_point(norm) for norm in outside), *(body_point(holder) for holder in inside)]


def body_point(holder: ir.Node) -> SolvePoint:
    """A node with norms in its bodies as a place where the two models differ; no activations are wanted there."""
    return SolvePoint(f"the bodies of {holder.name}", (holder,), original=(), converted=())


def norm_point(norm: LoweredNorm) -> SolvePoint:
    """A norm as a place to solve: its input in the converted model, its output in the original."""
    x, y = str(norm.x.name), str(norm.y.name)
    return SolvePoint(y, (norm.node,), original=(y,), converted=(x,))


def rows_of_norm(norm: LoweredNorm, activations: Callable[[], Iterator[Activations]]) -> Iterator[Rows]:
    """What the norm's fit sees: the converted model's x, the original's y."""
    x, y = str(norm.x.name), str(norm.y.name)
    for batch in activations():
        require_pairs(norm.site_name, batch.original[y], batch.converted[x])
        yield Rows.of(batch.converted[x], batch.original[y], batch.token_weights, batch.held_out)


def put_in_place(model: ir.Model, norm: LoweredNorm, function: Function, fitted: Fit) -> None:
    """Replace the norm in `model`, a clone of the one it is of, by the fitted function in its plain form.

    During calibration every value must keep its name and its producer.
    """
    replace(model, dataclasses.replace(norm, skip=None), function.name, fitted.parameters)

"""Fit every norm in turn, on the activations of the already converted model, towards the original's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.data import signature
from dynorm_onnx.calibration.norms.fit import Fit
from dynorm_onnx.calibration.norms.fit_rows import Leeway, fit_norm
from dynorm_onnx.calibration.norms.rows import Rows
from dynorm_onnx.calibration.norms.solved import Known, Solved
from dynorm_onnx.calibration.stages.held_out import held_out_samples
from dynorm_onnx.calibration.stages.plan import SolvePoint, order_points
from dynorm_onnx.calibration.stages.run_stages import Activations, StageRunner, require_pairs
from dynorm_onnx.calibration.stages.weights import weights_of_batches
from dynorm_onnx.functions import Function
from dynorm_onnx.graph.files.model_io import clone
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.replace.rewrite import replace
from dynorm_onnx.graph.values.reads import holders_of, path_to
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


Solve = Callable[[ir.Model, Callable[[], Iterator[Activations]]], Solved]
"""(the converted model, activations, which it reads as often as it likes) -> what it found."""


@dataclasses.dataclass(frozen=True)
class Solver:
    """How one point is solved, and how what was found is put into the converted model and told to the caller."""

    point: SolvePoint
    solve: Solve
    put: Callable[[ir.Model, Solved], None]


def calibrate_norms(
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    function: Function,
    batches: Sequence[Feeds],
    progress: Callable[[int, int], None],
    leeway: Mapping[str, Leeway],
    in_bodies: Mapping[str, Fit] | None = None,
    known: Known | None = None,
) -> Calibrated:
    """Method "fit": the parameters of every norm, nothing else. `lowered` is not changed.

    `leeway` says by site how many channels may stay coupled and how steep the function is made; `in_bodies` has the
    fits of norms in bodies, which are only put in their place; `known` what a run that was cut has found.
    """
    fits: dict[str, Fit] = {}
    solvers = norm_solvers(lowered, norms, function, fits, leeway, in_bodies)
    solve_in_order(lowered, solvers, batches, progress, known)
    return Calibrated(fits)


def solve_in_order(
    lowered: ir.Model,
    solvers: Sequence[Solver],
    batches: Sequence[Feeds],
    progress: Callable[[int, int], None],
    known: Known | None = None,
) -> None:
    """Solve every point, in graph order, on what the points before it left of a clone of the model.

    What is `known` is not solved again, but the models run as they would: any other cut might round differently. Where
    all is known, nothing runs.
    """
    known = Known() if known is None else known
    by_name = {solver.point.name: solver for solver in solvers}
    points = order_points(lowered.graph, [solver.point for solver in solvers])
    if _all_are_known(lowered, [by_name[point.name] for point in points], known):
        progress(len(points), len(points))
        return
    converted = clone(lowered)
    weights = weights_of_batches(lowered, batches)
    held_out = held_out_samples(batches, outermost=signature(lowered).has_samples_outermost)
    with StageRunner(lowered, converted, points, batches, token_weights=weights, held_out=held_out) as runner:
        for point in runner.points(progress):
            solver = by_name[point.name]
            solved = known.get(point.name)
            if solved is None:
                solved = solver.solve(converted, runner.activations)
                known.put(point.name, solved)
            solver.put(converted, solved)


def _all_are_known(lowered: ir.Model, solvers: Sequence[Solver], known: Known) -> bool:
    """Whether there is nothing left to solve; then everything has been put in its place."""
    if not all(known.has(solver.point.name) for solver in solvers):
        return False
    converted = clone(lowered)
    for solver in solvers:
        solved = known.get(solver.point.name)
        if solved is None:  # there, but damaged
            return False
        solver.put(converted, solved)
    return True


def norm_solvers(
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    function: Function,
    fits: dict[str, Fit],
    leeway: Mapping[str, Leeway],
    in_bodies: Mapping[str, Fit] | None = None,
) -> list[Solver]:
    """A solver for each norm, or for all in the bodies of one node; they put the functions in place and each Fit into
    `fits`."""

    def fitted(norm: LoweredNorm) -> Solve:
        def solve(_: ir.Model, activations: Callable[[], Iterator[Activations]]) -> Solved:
            rows = functools.partial(rows_of_norm, norm, activations)
            return Solved({norm.site_name: fit_norm(norm, function, rows, leeway)})

        return solve

    def as_fitted(members: Sequence[LoweredNorm]) -> Solve:
        return lambda *_: Solved({norm.site_name: (in_bodies or {})[norm.site_name] for norm in members})

    def putter(members: Sequence[LoweredNorm]) -> Callable[[ir.Model, Solved], None]:
        def put(converted: ir.Model, solved: Solved) -> None:
            fits.update(solved.fits)
            for norm in members:
                put_in_place(converted, norm, function, fits[norm.site_name])

        return put

    outside, inside = by_place(lowered.graph, norms)
    solvers = [Solver(norm_point(norm), fitted(norm), putter([norm])) for norm in outside]
    for holder, members in inside.items():
        solvers.append(Solver(body_point(holder), as_fitted(members), putter(members)))
    return solvers


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

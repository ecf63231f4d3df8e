"""Method "reconstruct": fit every norm, and re-fit every linear layer behind it, in closed form.

Layers are solved in graph order on the inputs that the converted model gives them, towards what the
original puts out; where no channel is coupled, the target of a layer that writes into the residual stream
also makes up for the stream's own error so far.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.data import signature
from dynorm_onnx.calibration.layers.layer_groups import EVENNESS, LayerGroup, group_layers, group_point
from dynorm_onnx.calibration.layers.layer_sums import gather
from dynorm_onnx.calibration.layers.on_grid import Metric, round_to_grid, round_with_scales
from dynorm_onnx.calibration.layers.ridge import Equations, Ridge, solve_ridges
from dynorm_onnx.calibration.layers.store import WeightStore
from dynorm_onnx.calibration.norms.calibrate import Calibrated, Solve, Solver, norm_solvers, solve_in_order
from dynorm_onnx.calibration.norms.fit import Fit
from dynorm_onnx.calibration.norms.fit_rows import Leeway
from dynorm_onnx.calibration.norms.solved import Known, Solved
from dynorm_onnx.calibration.stages.plan import SolvePoint
from dynorm_onnx.calibration.stages.run_stages import Activations
from dynorm_onnx.calibration.tail.fit_tail import Tail, TailWeights, find_tail, fit_tail, tail_point
from dynorm_onnx.calibration.tail.last_layer import fit_logits_layer, is_too_large
from dynorm_onnx.functions import Function
from dynorm_onnx.graph.linear.find import find_linear_layers
from dynorm_onnx.graph.linear.linear_layer import LinearLayer
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.replace.rewrite import set_initializers
from dynorm_onnx.graph.values.mapped import let_go
from dynorm_onnx.runtime.arrays import Feeds

log = logging.getLogger(__name__)

WEIGHTS_LIMIT = 1 << 30
"""Bytes of re-fitted weights that are kept in memory before they go to files."""


def reconstruct(
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    function: Function,
    batches: Sequence[Feeds],
    progress: Callable[[int, int], None],
    leeway: Mapping[str, Leeway],
    in_bodies: Mapping[str, Fit] | None = None,
    known: Known | None = None,
) -> Calibrated:
    """Fit all norms and re-fit all linear layers behind the first. `lowered` is not changed; `leeway`, `in_bodies` and
    `known` as for "fit"."""
    coupled = any(own.most_coupled for own in leeway.values())
    groups, notes = group_layers(lowered.graph, norms, None if coupled else EVENNESS)
    logits = signature(lowered).logits
    if not groups and notes:
        notes += ("no linear layer could be re-fitted: the result is that of --method fit",)
    free = [layer for group in groups for layer in group.layers if not layer.is_quantised]
    tail = find_tail(free, find_linear_layers(lowered.graph).held, norms, logits)
    notes += tuple(
        f"{layer.label} is fitted by least squares alone: {layer.inputs} x {layer.outputs} weights are too many to "
        "search for the least KL"
        for layer in free
        if _makes(logits, layer) and is_too_large(layer)
    )
    if tail is not None and tail.head_stays:
        notes += (f"{tail.writer.label} and the bias of {tail.norm.site_name} are fitted to the least KL through "
                  f"{tail.logits.label}, which stays",)  # fmt: skip
    fits: dict[str, Fit] = {}
    weights: dict[str, np.ndarray | ir.TensorProtocol] = {}
    store = WeightStore(WEIGHTS_LIMIT)

    def solve(group: LayerGroup) -> Solve:
        ends = tail is not None and tail.logits in group.layers
        own_logits = logits if tail is None or tail.head_stays else None

        def solve_layers(converted: ir.Model, activations: Callable[[], Iterator[Activations]]) -> Solved:
            solved = Solved(weights=solve_group(group, activations, own_logits))
            if tail is not None and ends:
                set_initializers(converted, solved.weights)  # from where the tail goes on
                last = _solve_tail(tail, converted, function, fits, activations)
                solved = Solved(last.fits, {**solved.weights, **last.weights})
            let_go(*(value for layer in group.layers for value in layer.initializers))
            return solved

        return solve_layers

    def solve_through(converted: ir.Model, activations: Callable[[], Iterator[Activations]]) -> Solved:
        assert tail is not None
        return _solve_tail(tail, converted, function, fits, activations)

    def put(converted: ir.Model, solved: Solved) -> None:
        kept = {name: store.keep(name, array) for name, array in solved.weights.items()}
        set_initializers(converted, kept)
        weights.update(kept)
        fits.update(solved.fits)

    def point(group: LayerGroup) -> SolvePoint:
        ends = tail is not None and tail.logits in group.layers
        return group_point(group, also_converted=tail.converted if tail is not None and ends else ())

    solvers = norm_solvers(lowered, norms, function, fits, leeway, in_bodies)
    solvers += [Solver(point(group), solve(group), put) for group in groups]
    if tail is not None and not any(tail.logits in group.layers for group in groups):
        solvers.append(Solver(tail_point(tail), solve_through, put))
    solve_in_order(lowered, solvers, batches, progress, known)
    return Calibrated(fits, weights, notes)


def solve_group(
    group: LayerGroup, activations: Callable[[], Iterator[Activations]], logits: str | None = None
) -> dict[str, np.ndarray]:
    """New values, by name, of the initializers of the group's layers.

    The layer whose output is `logits` is then fitted to the distribution that they stand for.
    """
    solved: dict[str, np.ndarray] = {}
    for layer, ridge, equations in _solve_ridges(group, activations):
        log.info("%s: lambda %s", layer.label, ridge.strength)
        if layer.is_quantised:
            solved.update(_of_its_grid(layer, ridge, *equations))
            continue
        weights = layer.parameters() + ridge.correction
        changed = ridge.strength is not None
        if _makes(logits, layer) and not is_too_large(layer):
            fitted = fit_logits_layer(layer, weights, activations)
            weights, changed = (weights, changed) if fitted is None else (fitted, True)
        if changed:
            solved.update(layer.stored_parameters(weights))
    return solved


def _of_its_grid(layer: LinearLayer, ridge: Ridge, training: Equations, held_out: Equations) -> dict[str, np.ndarray]:
    """New values of a layer with quantised weights: rounded with the scales as they are or with new ones, whichever
    is better on held-out tokens; none where neither gains."""
    grid = layer.grid()
    if grid is None or ridge.strength is None:
        return {}
    start = layer.parameters()
    metric = Metric(start + ridge.correction, training.products(), ridge.strength)
    rounded = round_to_grid(metric, grid)
    found = {"rounded with its scales as they are": (rounded, grid)}
    if layer.has_free_scales:
        found["rounded with new scales"] = round_with_scales(metric, grid, rounded)
    changes = {how: held_out.error_change(weights - start) for how, (weights, _) in found.items()}
    best = min(changes, key=lambda how: changes[how])
    told = ", ".join(f"{how} {change:.4g}" for how, change in changes.items())
    log.info("%s: %s (change of the held-out error: %s)", layer.label, best if changes[best] < 0 else "as it was", told)
    return layer.stored_parameters(*found[best]) if changes[best] < 0 else {}


def _solve_tail(
    tail: Tail,
    converted: ir.Model,
    function: Function,
    fits: dict[str, Fit],
    activations: Callable[[], Iterator[Activations]],
) -> Solved:
    """New values of the weights of the tail's layers, and the norm's fit with another bias; `fits` has that of now."""
    there = find_linear_layers(converted.graph)
    writer = next(layer for layer in there.layers if layer.name == tail.writer.name)
    logits = next(layer for layer in (*there.layers, *there.held) if layer.y is not None and layer.y.name == tail.y)
    norm = tail.norm.site_name
    parameters, head = fits[norm].parameters, logits.parameters()
    start = TailWeights(writer.parameters(), parameters.bias, head[:0] if tail.head_stays else head)
    found = fit_tail(tail, function, fits[norm], start, activations, head if tail.head_stays else None)
    if found is None:
        return Solved()
    solved = writer.stored_parameters(found.writer)
    if not tail.head_stays:
        solved |= logits.stored_parameters(found.logits)
    moved = dataclasses.replace(fits[norm], parameters=dataclasses.replace(parameters, bias=found.bias))
    return Solved({norm: moved}, solved)


def _solve_ridges(
    group: LayerGroup, activations: Callable[[], Iterator[Activations]]
) -> Iterator[tuple[LinearLayer, Ridge, tuple[Equations, Equations]]]:
    """Every layer with its solution and what was solved; those with a bias and those without have other features. Each
    part of a layer has a lambda of its own: what helps queries may be learned by heart in values."""
    parts = gather(group, activations)
    for has_bias in (False, True):
        alike = [layer for layer in group.layers if (layer.bias is not None) is has_bias]
        if alike:
            training, held_out = ([part.of_layer(layer) for layer in alike] for part in parts)
            cut = [[own.columns(part) for layer, own in zip(alike, sums, strict=True) for part in layer.parts]
                   for sums in (training, held_out)]  # fmt: skip
            solved = iter(solve_ridges(*cut, cautious=group.evenness is None))
            ridges = [Ridge.side_by_side(list(itertools.islice(solved, len(layer.parts)))) for layer in alike]
            yield from zip(alike, ridges, zip(training, held_out, strict=True), strict=True)


def _makes(logits: str | None, layer: LinearLayer) -> bool:
    return logits is not None and layer.y is not None and layer.y.name == logits

"""Where a graph is cut for calibration, and what must be kept at each cut.

The places to solve (norms, later linear layers) are put in graph order: point 0, 1, ... A value's
*stage* is the number of points that must be solved before it can be computed: stage 0 needs none,
a point's own outputs are of the stage after it. Running stage k of the converted model thus needs
points 0 .. k-1 solved, and delivers what point k is to be solved with. The original model needs
nothing solved, so there a point's outputs are computed together with what leads to them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from dynorm_onnx.graph.values.fixed import constant_values
from dynorm_onnx.graph.values.reads import inputs_of

CONSTANT = -1


@dataclasses.dataclass(frozen=True)
class SolvePoint:
    """Nodes whose parameters are solved for together, and the values that the solver wants to see."""

    name: str
    nodes: tuple[ir.Node, ...]
    original: tuple[str, ...]  # values wanted of the original model, outputs of `nodes` allowed
    converted: tuple[str, ...]  # values wanted of the converted model, nothing behind `nodes`


@dataclasses.dataclass(frozen=True)
class Stage:
    """The inputs and outputs, by name, of one stage's piece of one model."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stages of both models, and the stage after which each value of a model may be dropped.

    Values of stage 0 depend on no point and are the same in both models: only the original's
    stages compute them, and the converted model reads them there.
    """

    points: tuple[SolvePoint, ...]
    original: tuple[Stage, ...]
    converted: tuple[Stage, ...]
    last_use_original: dict[str, int]
    last_use_converted: dict[str, int]


def order_points(graph: ir.Graph, points: Sequence[SolvePoint]) -> list[SolvePoint]:
    """The points in graph order, by their first node."""
    position = {node: index for index, node in enumerate(graph)}
    return sorted(points, key=lambda point: min(position[node] for node in point.nodes))


def value_stages(graph: ir.Graph, points: Sequence[SolvePoint]) -> dict[str, int]:
    """The stage of every value by name: CONSTANT, 0 where no point changes it, else as said above.

    What a node draws at random is of stage 0 as inputs are: it differs from run to run, and both models are shown
    the same. An input with a default is CONSTANT: calibration feeds nothing for it.
    """
    point_of = {node: place for place, point in enumerate(order_points(graph, points)) for node in point.nodes}
    constant = constant_values(graph)
    stages = {str(value.name): CONSTANT for value in constant}
    stages |= {str(value.name): 0 for value in graph.inputs if not value.is_initializer()}
    for node in graph:
        if node in point_of:
            stage = point_of[node] + 1
        elif constant.issuperset(node.outputs):
            continue
        else:
            stage = max((0, *(stages[str(value.name)] for value in inputs_of(node))))
        stages.update({str(output.name): stage for output in node.outputs if output.name})
    return stages


def make_plan(graph: ir.Graph, points: Sequence[SolvePoint]) -> Plan:
    """Cut `graph` (its nodes in topological order) at the points."""
    ordered = order_points(graph, points)
    point_of = {node: index for index, point in enumerate(ordered) for node in point.nodes}
    stages = value_stages(graph, ordered)
    early = stages | {str(output.name): index for node, index in point_of.items() for output in node.outputs}
    common = {name for name, stage in stages.items() if stage == 0}
    nodes = _needed(graph, {n for point in ordered for n in (*point.original, *point.converted)})
    own = {name: stage for name, stage in stages.items() if stage > 0}
    converted, last_converted = _cut(nodes, own, [p.converted for p in ordered], given=common)
    lent = [
        tuple(name for name in (*stage.inputs, *point.converted) if name in common)
        for stage, point in zip(converted, ordered, strict=True)
    ]
    wanted = [(*point.original, *names) for point, names in zip(ordered, lent, strict=True)]
    feeds = {str(value.name) for value in graph.inputs if not value.is_initializer()}
    original, last_original = _cut(nodes, early, wanted, given=feeds)
    return Plan(tuple(ordered), original, converted, last_original, last_converted)


def _needed(graph: ir.Graph, wanted: set[str]) -> list[ir.Node]:
    """The nodes, in graph order, that the wanted values depend on."""
    alive, nodes = set(wanted), []
    for node in reversed(graph):
        if any(output.name in alive for output in node.outputs):
            nodes.append(node)
            alive.update(str(value.name) for value in inputs_of(node))
    return nodes[::-1]


def _cut(
    nodes: Sequence[ir.Node],
    stages: dict[str, int],
    wanted: Sequence[Sequence[str]],
    *,
    given: set[str],
) -> tuple[tuple[Stage, ...], dict[str, int]]:
    """The stages over `nodes`, and the last stage at which each value that is kept is used.

    `stages` has the values that this model computes, `given` those that it finds computed already;
    values in neither are constants, which each stage computes for itself.
    """
    inputs: list[dict[str, None]] = [{} for _ in wanted]
    outputs: list[dict[str, None]] = [{} for _ in wanted]
    last_use: dict[str, int] = {}

    def keep(name: str, stage: int) -> None:
        last_use[name] = max(last_use.get(name, 0), stage)
        if name not in given:
            outputs[stages[name]][name] = None

    for node in nodes:
        stage = max((stages.get(str(output.name), CONSTANT) for output in node.outputs), default=CONSTANT)
        if not CONSTANT < stage < len(wanted):
            continue
        for name in (str(value.name) for value in inputs_of(node)):
            if name in given or CONSTANT < stages.get(name, CONSTANT) < stage:
                inputs[stage][name] = None
                keep(name, stage)
    for stage, names in enumerate(wanted):
        for name in names:
            if name in given or stages.get(name, CONSTANT) > CONSTANT:
                keep(name, stage)
    return tuple(Stage(tuple(i), tuple(o)) for i, o in zip(inputs, outputs, strict=True)), last_use

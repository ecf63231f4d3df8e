"""Norms in pieces (forms B and C but C6): from the reduction of a square to the site around it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

import onnx_ir as ir

from dynorm_onnx.graph.forms import affine, layer, rms
from dynorm_onnx.graph.forms.affine import Normalised
from dynorm_onnx.graph.forms.algebra import Polynomial
from dynorm_onnx.graph.forms.anchors import Anchor, anchors, at_ranks_that_fit, roots
from dynorm_onnx.graph.forms.diagnosis import explain, why_not_axes
from dynorm_onnx.graph.forms.instance import instance_norm
from dynorm_onnx.graph.forms.layout import lift_over_flatten, why_not_last_axis
from dynorm_onnx.graph.forms.operators import Frame
from dynorm_onnx.graph.forms.quantised import AcrossQuantisation, across_quantisation
from dynorm_onnx.graph.forms.region import Region, walk
from dynorm_onnx.graph.norm_site import NearMiss, NormSite, Refusal
from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import FLOATS, is_op, is_quantiser

Finding = NormSite | Refusal | NearMiss
_MADE_UP = re.compile(r"node(_\d+)?")  # what onnx_ir calls nodes that have no name in the file
_HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def find(index: GraphIndex, taken: Iterable[ir.Node] = ()) -> list[Finding]:
    """What every reduction of a square in the graph turns out to be, in graph order; those `taken` are told of.

    Sites are not proved yet. Names are those of nodes or values, not made unique.
    """
    found: list[Finding] = []
    covered = set(taken)
    plain = {anchor.node: anchor for anchor in anchors(index)}
    across = across_quantisation(index)
    for anchor in plain.values() if across is None else anchors(across):
        if anchor.node in covered:
            continue
        findings = _judge(index, plain[anchor.node]) if anchor.node in plain else []
        if across is not None and all(isinstance(f, NearMiss) for f in findings):
            findings = _quantised(across, anchor) or findings
        found += findings
        covered.update(node for f in findings if isinstance(f, NormSite) for node in f.nodes)
    return found


def _quantised(across: AcrossQuantisation, anchor: Anchor) -> list[Finding]:
    """A near miss for every norm that the reduction would belong to, were nothing rounded within it."""
    sites = [finding for finding in _judge(across, anchor) if isinstance(finding, NormSite)]
    misses: list[Finding] = []
    for site in sites:
        between = [node for node in site.nodes if is_quantiser(node)]
        if between:
            what = f"{between[0].op_type} '{name_of(between[0].outputs[0])}'"
            others = f" and {len(between) - 1} more" if len(between) > 1 else ""
            kind = {"rms": "an RMSNorm", "layer": "a LayerNorm"}[site.kind]
            reason = f"is {kind} that is quantised inside: its pieces are read through {what}{others}"
            misses.append(NearMiss(site.name, reason))
    return misses


def name_of(value: ir.Value) -> str:
    """A name for what gives a value: its node's, unless that was only made up for it, else its own."""
    node = value.producer()
    given = node.name if node is not None else None
    return given if given and not _MADE_UP.fullmatch(given) else value.name or given or "norm"


def _judge(index: GraphIndex, anchor: Anchor) -> list[Finding]:
    """The sites around one reduction: one, or several where norms share it; or why there is none."""
    name = name_of(anchor.node.outputs[0])
    reason = why_not_axes(index, anchor)
    if reason is not None or not anchor.axes:
        assumed = (_told_rank(index, at_rank) for at_rank in at_ranks_that_fit(index, anchor))
        return next(filter(None, assumed), [NearMiss(name, f"looks like a norm, but {reason}")])
    findings, regions = _try_roots(index, anchor)
    if findings:
        return findings
    telling = next((r for r in regions if r.forms.get(anchor.squared) == layer.CENTRED), regions[-1])
    return [NearMiss(name, f"looks like a norm, but {explain(telling)}")]


def _try_roots(index: GraphIndex, anchor: Anchor) -> tuple[list[Finding], list[Region]]:
    """The findings around a reduction, for the first x that it is a norm of; and the regions looked at."""
    regions = []
    for x in roots(index, anchor):
        regions.append(walk(Frame(index, x, anchor.axes or (), _count(index, anchor), anchor.rank)))
        findings = _sites(regions[-1], anchor)
        if findings:
            return findings, regions
    return [], regions


def _told_rank(index: GraphIndex, anchor: Anchor) -> list[Finding]:
    """The sites around a reduction whose rank is assumed, where weight and bias tell that it is right: they lie along
    the normalised axes, and along no other ones."""
    findings, _ = _try_roots(index, anchor)
    told = (isinstance(f, NormSite) and _lies_along(index, f) for f in findings)
    return findings if findings and all(told) else []


def _lies_along(index: GraphIndex, site: NormSite) -> bool:
    shapes = [shape for value in (site.weight, site.bias) if (shape := index.shape(value))]
    along = [{axis for axis in range(-len(shape), 0) if shape[axis] != 1} for shape in shapes]
    return bool(along) and all(axes == set(site.axes) for axes in along)


def _sites(region: Region, anchor: Anchor) -> list[Finding]:
    """Before: values that read as a norm's result. After: a site for each that comes from no other one.

    x may feed several norms: only what this reduction takes part in counts here.
    """
    readings = readings_of(region)
    findings: list[Finding] = []
    ends: set[ir.Node | None] = set()
    for value in readings:
        way = set(region.covered(value))
        if anchor.node in way and not way & ends:
            findings.append(site_of(region, readings, value))
            ends |= {value.producer()}
    return findings


def _count(index: GraphIndex, anchor: Anchor) -> int | None:
    shape = index.shape(anchor.node.inputs[0]) or index.shape(anchor.squared)
    sizes = [shape[a] for a in anchor.axes or ()] if shape is not None else [None]
    known = [s for s in sizes if s is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def readings_of(region: Region) -> dict[ir.Value, Normalised]:
    """The values of a region that are a norm's result, by what they are."""
    index, x, axes = region.frame.index, region.frame.x, region.frame.axes
    half = any(index.dtype(value) in _HALVES for value in region.forms if value is not x)
    tolerance = 2e-3 if half else 5e-6  # how exact a constant like sqrt(C) can be
    readings = {}
    for value, form in region.forms.items():
        reading = _read(form, tolerance)
        if reading is None:
            continue
        weight, bias = reading.weight, reading.bias
        if weight is not None and affine.why_not_weight(index, weight, x, axes) is not None:
            continue
        if bias is not None and affine.why_not_bias(index, bias, x, axes) is not None:
            continue
        readings[value] = reading
    return readings


def _read(form: Polynomial, tolerance: float) -> Normalised | None:
    return rms.read(form, tolerance) or layer.read(form, tolerance)


def site_of(region: Region, readings: dict[ir.Value, Normalised], first: ir.Value) -> Finding:
    """The site whose normalised value is `first`, with weight and bias as far as they follow."""
    index, frame = region.frame.index, region.frame
    dtype = index.dtype(frame.x)
    if dtype is not None and dtype not in FLOATS:
        return NearMiss(name_of(first), f"looks like a norm, but its input is {dtype.name.lower()}")
    y = affine.extend(index, frame.x, first, readings.get)
    reading, way = readings[y], region.covered(y)
    site = NormSite(
        name=name_of(y),
        kind=reading.kind,
        form="",
        nodes=tuple(way),
        x=frame.x,
        y=y,
        weight=reading.weight,
        bias=reading.bias,
        epsilon=reading.epsilon,
        axes=frame.axes,
        channels=frame.count or _channels_of(index, reading, frame.axes),
        dtype=index.dtype(y) or index.dtype(frame.x) or ir.DataType.FLOAT,
        rank=frame.rank,
    )
    form = (rms if site.kind == "rms" else layer).form_of(region, site)
    group = why_not_last_axis(index, frame.x, site.channels) if frame.axes == (-1,) else None
    group = group or instance_norm(index, site)
    if group is not None:
        return NearMiss(site.name, f"looks like a norm, but {group}")
    larger = _enlarging_weight(region, reading, y)
    if larger is not None:
        return Refusal(site.name, site.kind, form, site.channels, site.dtype, larger)
    own = tuple(without_needed(index, way, y))
    return lift_over_flatten(index, dataclasses.replace(site, form=form, nodes=own))


def _channels_of(index: GraphIndex, reading: Normalised, axes: tuple[int, ...]) -> int | None:
    """The number of channels as the weight or bias tells it, where the shape of x does not."""
    for value in (reading.weight, reading.bias):
        shape = index.shape(value) or ()
        sizes = [size for axis in axes if -axis <= len(shape) and (size := shape[axis]) not in (1, None)]
        if len(sizes) == len(axes):
            return math.prod(sizes)
    return None


def without_needed(index: GraphIndex, way: list[ir.Node], y: ir.Value | None) -> list[ir.Node]:
    """The nodes that go with the norm. Where something else reads the mean, the root or a Cast of x,
    the nodes that give it stay for themselves: y is replaced as exactly without them."""
    own = set(way)
    while True:
        needed = {n for n in own for o in n.outputs if o is not y and index.used_outside(o, own)}
        if not needed:
            return [node for node in way if node in own]
        own -= needed


def _following_weight(region: Region, y: ir.Value) -> ir.Value | None:
    """The parameter that y, and nobody else, is multiplied by."""
    index = region.frame.index
    readers = [] if index.is_output(y) else index.consumers(y)
    if len(readers) != 1 or not is_op(readers[0], "Mul"):
        return None
    others = [i for i in readers[0].inputs if i is not None and i is not y]
    return others[0] if others and affine.is_parameter(index, others[0]) else None


def _enlarging_weight(region: Region, reading: Normalised, y: ir.Value) -> str | None:
    index, weight = region.frame.index, _following_weight(region, y)
    shape, onto = index.shape(weight), index.shape(region.frame.x)
    if weight is None or reading.weight is not None or shape is None or onto is None:
        return None
    if not affine.enlarges(shape, onto):
        return None
    return f"its weight of shape {affine.spelled(shape)} enlarges the input of shape {affine.spelled(onto)}"

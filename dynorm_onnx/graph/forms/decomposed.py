"""Norms in pieces (forms B and C but C6): from the reduction of a square to the site around it."""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from dynorm_onnx.graph.forms import affine, layer, rms
from dynorm_onnx.graph.forms.affine import Normalised
from dynorm_onnx.graph.forms.algebra import Polynomial
from dynorm_onnx.graph.forms.anchors import Anchor, anchors, roots
from dynorm_onnx.graph.forms.diagnosis import explain, why_not_axes
from dynorm_onnx.graph.forms.index import GraphIndex, is_op
from dynorm_onnx.graph.forms.layout import lift_over_flatten, why_not_last_axis
from dynorm_onnx.graph.forms.operators import Frame
from dynorm_onnx.graph.forms.region import Region, walk
from dynorm_onnx.graph.norm_site import NearMiss, NormSite, Refusal

Finding = NormSite | Refusal | NearMiss
_HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def find(model: ir.Model, index: GraphIndex) -> list[Finding]:
    """What every reduction of a square in the graph turns out to be, in graph order.

    Sites are not proved yet. Names are those of nodes or values, not made unique.
    """
    found: list[Finding] = []
    covered: set[ir.Node] = set()
    for anchor in anchors(index):
        if anchor.node in covered:
            continue
        finding = _judge(index, anchor)
        found.append(finding)
        if isinstance(finding, NormSite):
            covered.update(finding.nodes)
    return found


def name_of(value: ir.Value | None) -> str:
    """A name for what gives a value: its node's, else its own."""
    node = value.producer() if value is not None else None
    return (node.name if node is not None else None) or (value.name if value is not None else None) or "norm"


def _judge(index: GraphIndex, anchor: Anchor) -> Finding:
    name = name_of(anchor.node.outputs[0])
    reason = why_not_axes(index, anchor)
    if reason is not None or not anchor.axes:
        return NearMiss(name, f"looks like a norm, but {reason}")
    region = None
    for x in roots(index, anchor):
        region = walk(Frame(index, x, anchor.axes, _count(index, anchor)))
        readings = readings_of(region)
        # x may feed several norms: only what this reduction takes part in counts here.
        first = next((value for value in readings if anchor.node in region.covered(value)), None)
        if first is not None:
            return site_of(region, readings, first)
    assert region is not None  # roots() never gives nothing
    return NearMiss(name, f"looks like a norm, but {explain(region)}")


def _count(index: GraphIndex, anchor: Anchor) -> int | None:
    shape = index.shape(anchor.node.inputs[0]) or index.shape(anchor.squared)
    sizes = [shape[a] for a in anchor.axes or ()] if shape is not None else [None]
    known = [s for s in sizes if s is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def readings_of(region: Region) -> dict[ir.Value, Normalised]:
    """The values of a region that are a norm's result, by what they are."""
    index, x, axes = region.frame.index, region.frame.x, region.frame.axes
    half = any(index.dtype(value) in _HALVES for value in region.forms)
    tolerance = 2e-3 if half else 1e-6  # how exact a constant like sqrt(C) can be
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
    y = affine.extend(index, frame.x, first, readings.get)
    reading = readings[y]
    nodes = region.covered(y)
    channels = frame.count
    dtype = index.dtype(y) or index.dtype(frame.x) or ir.DataType.FLOAT
    name, kind = name_of(y), reading.kind
    nodes, reason = _separable(region, nodes, y)
    site = NormSite(
        name, kind, "", tuple(nodes), frame.x, y, reading.weight, reading.bias, reading.epsilon,
        frame.axes, channels, dtype,
    )  # fmt: skip
    form = (rms if kind == "rms" else layer).form_of(region, site)
    if reason is not None:
        return Refusal(name, kind, form, channels, dtype, reason)
    group = why_not_last_axis(index, frame.x) if frame.axes == (-1,) else None
    group = group or _instance_norm(region, y)
    if group is not None:
        return NearMiss(name, f"looks like a norm, but {group}")
    larger = _enlarging_weight(region, reading, y)
    if larger is not None:
        return Refusal(name, kind, form, channels, dtype, larger)
    return lift_over_flatten(index, dataclasses.replace(site, form=form))


def _separable(region: Region, nodes: list[ir.Node], y: ir.Value) -> tuple[list[ir.Node], str | None]:
    """The nodes that go with the norm, and why they cannot go: someone else needs what they give.

    A Cast of x that others read too simply stays.
    """
    index, x = region.frame.index, Polynomial.symbol("x")
    kept: set[ir.Node] = set()
    while True:
        gone = set(nodes) - kept
        needed = [n for n in gone for o in n.outputs if o is not y and index.used_outside(o, gone)]
        copies = {n for n in needed if region.forms.get(n.outputs[0]) == x}
        if not copies:
            break
        kept |= copies
    reason = None
    for node in sorted(needed, key=index.position):
        what = _role(region.forms[node.outputs[0]])
        exposed = any(index.is_output(o) for o in node.outputs)
        where = "an output of the graph" if exposed else "used elsewhere"
        reason = reason or f"{what} ({node.outputs[0].name}) is {where}"
    return [node for node in nodes if node not in kept], reason


def _role(form: Polynomial) -> str:
    if form == Polynomial.symbol("mean"):
        return "its mean"
    if form == layer.CENTRED:
        return "its centred input"
    if form.has("x"):
        return "an intermediate result"
    return "its inverse deviation" if any(e < 0 for m in form.terms for _, e in m) else "its deviation"


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
    return f"its weight of shape {list(shape)} enlarges the input of shape {list(onto)}"


def _instance_norm(region: Region, y: ir.Value) -> str | None:
    """A norm over all places whose weight is per channel: [C, 1, ..] right before the places."""
    index, axes = region.frame.index, region.frame.axes
    weight = _following_weight(region, y)
    shape = index.shape(weight)
    if weight is None or shape is None or axes[-1] != -1 or len(shape) <= len(axes):
        return None
    inside, outside = shape[-len(axes) :], shape[: -len(axes)]
    if all(d == 1 for d in inside) and outside[-1] != 1 and index.rank(region.frame.x) == len(axes) + 2:
        return "its weight is per channel while its mean runs over the places: an InstanceNormalization"
    return None

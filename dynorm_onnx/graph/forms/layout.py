"""Reshapes around a norm: a Flatten that the norm is lifted over, and groups that are no norm of ours."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import onnx_ir as ir

from dynorm_onnx.graph.norm_site import NormSite
from dynorm_onnx.graph.values.index import GraphIndex, Shape
from dynorm_onnx.graph.values.node_kinds import is_op
from dynorm_onnx.graph.values.small_constants import integer


def lift_over_flatten(index: GraphIndex, site: NormSite) -> NormSite:
    """Before: x -> Flatten(axis k) -> norm over the last axis -> Reshape back (the inlined body of
    LayerNormalization, forms B10 and C4). After: the norm of x over the axes from k on.

    When: the Reshape gives back x's shape and nobody else reads what it is given; weight and bias, if
    flattened as well, are taken where they were. Else the site stays where it is, behind the Flatten.
    """
    flatten = site.x.producer() if site.x is not None else None
    if not is_op(flatten, "Flatten") or flatten is None or site.axes != (-1,) or site.y is None:
        return site
    source, readers = flatten.inputs[0], index.consumers(site.y)
    if source is None or index.is_output(site.y) or len(readers) != 1 or not is_op(readers[0], "Reshape"):
        return site
    axes = _tail(index, source, integer(flatten, "axis", 1))
    weight, bias = _unflattened(index, site.weight, axes), _unflattened(index, site.bias, axes)
    if axes is None or weight is False or bias is False or not restores(index, readers[0], source):
        return site
    removed = () if index.used_outside(flatten.outputs[0], set(site.nodes)) else (flatten,)
    x = index.peel(source)
    return dataclasses.replace(
        site,
        nodes=(*removed, *site.nodes, readers[0]),
        x=x,
        y=readers[0].outputs[0],
        weight=weight,
        bias=bias,
        axes=axes,
    )


def why_not_last_axis(index: GraphIndex, x: ir.Value, channels: int | None) -> str | None:
    """Why x's last axis, of `channels` elements, is a group of channels and places rather than channels; None if it
    is not.

    The bodies of GroupNormalization and InstanceNormalization hold a norm over the last axis behind a
    Reshape to [N, groups, -1]. A Reshape is harmless if its last axis is a part of the last axis that
    was there (heads, groups of channels), or the product of whole trailing axes.
    """
    node = x.producer()
    if not is_op(node, "Reshape"):
        return None
    source = _before_reshapes(index, x)
    before, after = index.shape(source), index.shape(x)
    size = (after[-1] if after else None) or channels
    if size is None:
        return "its Reshape merges an unknown part of the axes, as in a GroupNormalization"
    if not before or before[-1] is None or before[-1] % size == 0:
        return None
    return None if size in _tail_products(before) else "it normalises groups of channels and places"


def _before_reshapes(index: GraphIndex, value: ir.Value) -> ir.Value:
    node = value.producer()
    while is_op(node, "Reshape") and node is not None and node.inputs[0] is not None:
        value = index.peel(node.inputs[0])
        node = value.producer()
    return value


def _tail_products(shape: Shape) -> set[int]:
    products, size = set(), 1
    for dimension in reversed(shape):
        if dimension is None:
            break
        size *= dimension
        products.add(size)
    return products


def _tail(index: GraphIndex, source: ir.Value, axis: int) -> tuple[int, ...] | None:
    """The axes from `axis` on, negative."""
    if axis >= 0:
        rank = index.rank(source)
        if rank is None:
            return None
        axis -= rank
    return tuple(range(axis, 0)) or None


def _unflattened(
    index: GraphIndex, value: ir.Value | None, axes: tuple[int, ...] | None
) -> ir.Value | Literal[False] | None:
    """The weight before its Flatten(axis 0); False if it does not fit the axes x has there."""
    if value is None:
        return None
    node = value.producer()
    if is_op(node, "Flatten") and node is not None and integer(node, "axis", 1) == 0:
        return node.inputs[0]
    return value if axes == (-1,) or index.scalar(value) is not None else False


def restores(index: GraphIndex, reshape: ir.Node, source: ir.Value) -> bool:
    """Whether a Reshape gives the shape of `source`: by Shape(source), or by numbers."""
    target = reshape.inputs[1]
    shape_node = target.producer() if target is not None else None
    if is_op(shape_node, "Shape") and shape_node is not None and not shape_node.attributes:
        given = shape_node.inputs[0]
        if given is not None and index.same(given, source):
            return True
    before, after = index.shape(source), index.shape(reshape.outputs[0])
    data = index.constant(target)
    if data is not None:
        after = tuple(int(d) for d in data)
    if before is None or after is None or len(before) != len(after):
        return False
    unknown = sum(d in (None, -1, 0) for d in after)
    same = all(a in (b, None, -1, 0) for a, b in zip(after, before, strict=True))
    return same and (unknown == 0 or (unknown == 1 and math.prod(d or 1 for d in before) > 0))

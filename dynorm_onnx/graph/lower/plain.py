"""Lowering of norms with an x and a y of their own: spelled out in operators, or one standard node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.edit.emit import remove_dead
from dynorm_onnx.graph.lower.canonical import Lowering
from dynorm_onnx.graph.lower.lowered_norm import LoweredNorm, sum_operands
from dynorm_onnx.graph.norm_site import NormSite
from dynorm_onnx.graph.values.fixed import is_fixed

_CANONICAL = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}


def lower_plain(lowering: Lowering, site: NormSite) -> LoweredNorm:
    """Puts the canonical node in front of the one that gave y, or keeps a node that is canonical."""
    x, weight, bias = (lowering.current(value) for value in (site.x, site.weight, site.bias))
    assert x is not None and site.y is not None  # form A4 to A8 only
    if _is_canonical(lowering, site, weight, bias):
        return _kept(site, x, weight, bias)
    place = site.y.producer()
    assert place is not None
    lowered, y = lowering.norm(site, lowering.emitter(site, place), x, weight, bias, site.axes)
    lowering.take_over(site.y, y)
    remove_dead(site.nodes)
    return lowered


def _is_canonical(lowering: Lowering, site: NormSite, weight: ir.Value | None, bias: ir.Value | None) -> bool:
    node = site.nodes[-1]
    if len(site.nodes) > 1 or node.domain != "" or node.op_type not in _CANONICAL or site.axes != (-1,):
        return False
    if node.op_type == "RMSNormalization" and site.dtype == ir.DataType.BFLOAT16:
        return False
    parameters = [weight] if bias is None else [weight, bias]
    return (
        lowering.is_uniform(site)
        and site.channels is not None
        and all(
            value is not None
            and is_fixed(value)
            and value.const_value is not None
            and value.const_value.shape == (site.channels,)
            and value.const_value.dtype == site.dtype
            for value in parameters
        )
    )


def _kept(site: NormSite, x: ir.Value, weight: ir.Value | None, bias: ir.Value | None) -> LoweredNorm:
    node = site.nodes[-1]
    assert site.channels is not None and weight is not None and weight.const_value is not None
    shift = None if bias is None or bias.const_value is None else bias.const_value.numpy()
    return LoweredNorm(
        site.name, site.kind, site.form, node, x=x, y=node.outputs[0],
        weight=weight.const_value.numpy().astype(np.float32),
        bias=None if shift is None else shift.astype(np.float32),
        epsilon=site.epsilon, channels=site.channels, dtype=site.dtype, skip=sum_operands(x),
    )  # fmt: skip

"""Trap E1: an RMS operator behind x - mean(x) is a LayerNorm, and the mean belongs to it.

ONNX Runtime saves a LayerNorm without bias as ReduceMean, Sub, SimplifiedLayerNormalization.
"""

from __future__ import annotations

import dataclasses

from dynorm_onnx.graph.forms.index import GraphIndex, is_op
from dynorm_onnx.graph.forms.layer import CENTRED
from dynorm_onnx.graph.forms.operators import Frame
from dynorm_onnx.graph.forms.region import walk
from dynorm_onnx.graph.norm_site import NormSite


def take_mean(index: GraphIndex, site: NormSite) -> NormSite:
    """Before: mean(x), x - mean(x), an RMSNorm of it. After: one LayerNorm of x.

    When: the mean is over the site's axes and nobody else reads mean or difference. Where somebody
    does, the site stays an RMSNorm of the difference, which is as exact.
    """
    if site.kind != "rms" or site.x is None or site.residual is not None:
        return site
    difference = site.x.producer()
    if not is_op(difference, "Sub") or difference is None or difference.inputs[0] is None:
        return site
    x = index.peel(difference.inputs[0])
    region = walk(Frame(index, x, site.axes, site.channels))
    if region.forms.get(site.x) != CENTRED:
        return site
    nodes = region.covered(site.x)
    inside = {*nodes, *site.nodes}
    if any(index.used_outside(output, inside) for node in nodes for output in node.outputs):
        return site
    return dataclasses.replace(site, kind="layer", x=x, nodes=(*nodes, *site.nodes))

"""Trap E1: an RMS operator behind x - mean(x) is a LayerNorm, and the mean belongs to it.

ONNX Runtime saves a LayerNorm without bias as ReduceMean, Sub, SimplifiedLayerNormalization.
"""

from __future__ import annotations

import dataclasses

from dynorm_onnx.graph.forms.decomposed import without_needed
from dynorm_onnx.graph.forms.layer import CENTRED
from dynorm_onnx.graph.forms.operators import Frame
from dynorm_onnx.graph.forms.region import walk
from dynorm_onnx.graph.norm_site import NormSite
from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import is_op


def take_mean(index: GraphIndex, site: NormSite) -> NormSite:
    """Before: mean(x), x - mean(x), an RMSNorm of it. After: one LayerNorm of x.

    When: the mean is over the site's axes. Where something else reads the mean or the difference, the
    nodes that give it stay.
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
    way = [*region.covered(site.x), *site.nodes]
    return dataclasses.replace(site, kind="layer", x=x, nodes=tuple(without_needed(index, way, site.y)))

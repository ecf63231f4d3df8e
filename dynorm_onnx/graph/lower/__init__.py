"""Lowering: every norm site becomes standard operators and exactly one canonical norm node.

What comes out is what `--to rmsnorm` writes, and what calibration and rewriting start from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import onnx_ir as ir

from dynorm_onnx.graph.forms import fused
from dynorm_onnx.graph.lower.attention import lower_attention
from dynorm_onnx.graph.lower.canonical import Lowering
from dynorm_onnx.graph.lower.embed import lower_embedding
from dynorm_onnx.graph.lower.gated import lower_gated
from dynorm_onnx.graph.lower.lowered_norm import LoweredNorm, require_finite, sum_operands
from dynorm_onnx.graph.lower.plain import lower_plain
from dynorm_onnx.graph.lower.skip import lower_skip
from dynorm_onnx.graph.norm_site import NormSite
from dynorm_onnx.graph.values.index import GraphIndex, graph_indices

__all__ = ["LoweredNorm", "lower", "require_finite", "sum_operands"]

_FUSED: dict[str, Callable[[Lowering, NormSite], LoweredNorm]] = {
    "A4": lower_skip,
    "A5": lower_skip,
    "A6": lower_embedding,
    "A8": lower_gated,
}


def lower(model: ir.Model, sites: Sequence[NormSite]) -> tuple[LoweredNorm, ...]:
    """Lowers `sites` of `model`, in its bodies too, in place; the result is in topological order, graph by graph.

    `sites` must come from the model as it is now. Names of graph inputs and outputs stay. Weights are
    read. Raises ModelError where a norm over an inner axis has an input of unknown rank.
    """
    wanted = {site.name for site in sites}
    ordered: list[NormSite] = []
    x_dtypes: dict[NormSite, ir.DataType] = {}
    for graph, index in graph_indices(model).items():
        here = _complete(model, index, [site for site in sites if site.graph is graph])
        ordered += sorted(here, key=lambda site: index.position(_anchor(site)))
        x_dtypes |= {site: index.dtype(site.x) or site.dtype for site in here}
    lowering = Lowering(model, x_dtypes)
    lowered: list[LoweredNorm] = []
    for _, group in itertools.groupby(ordered, key=_anchor):
        members = list(group)
        if members[0].form == "A7":
            lowered += lower_attention(lowering, members)
        else:
            lowered += [_FUSED.get(site.form, lower_plain)(lowering, site) for site in members]
    return tuple(norm for norm in lowered if norm.site_name in wanted)


def _complete(model: ir.Model, index: GraphIndex, sites: Sequence[NormSite]) -> list[NormSite]:
    """`sites`, and of attention nodes with one of their two norms among them the other as well."""
    nodes = {site.nodes[0] for site in sites if site.form == "A7"}
    partners = [site for site in fused.find(model, index) if isinstance(site, NormSite)] if nodes else []
    known = {(site.nodes[0], site.part) for site in sites}
    return [*sites, *(s for s in partners if s.nodes[0] in nodes and (s.nodes[0], s.part) not in known)]


def _anchor(site: NormSite) -> ir.Node:
    """The node that gives the result: everything the norm needs comes before it."""
    producer = site.y.producer() if site.y is not None else None
    return producer if producer is not None else site.nodes[-1]

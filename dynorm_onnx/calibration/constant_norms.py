"""Norms of what is the same in every run, such as learned queries: there is nothing to fit a function to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from dynorm_onnx.calibration.plan import CONSTANT, value_stages
from dynorm_onnx.errors import NoSiteError
from dynorm_onnx.graph.forms.fused import SUM_BIAS
from dynorm_onnx.graph.norm_site import NormSite


def leave_constants(
    chosen: Sequence[NormSite], kept: dict[str, str], graph: ir.Graph
) -> tuple[tuple[NormSite, ...], dict[str, str]]:
    """The same two without the sites whose input no calibration data changes: it follows from constants, and from
    inputs with a default. A runtime computes what follows from constants once, when it loads the model.

    `graph` has its nodes in topological order. Raises NoSiteError where no site is left.
    """
    stages = value_stages(graph, ())
    same = [site for site in chosen if all(stages[str(value.name)] == CONSTANT for value in _normalised(site))]
    kept = kept | {site.name: "its input is the same in every run" for site in same}
    left = tuple(site for site in chosen if site not in same)
    if not left:
        names = ", ".join(site.name for site in same[:3])
        raise NoSiteError(f"the inputs of all norms are the same in every run ({names}): they cost nothing as they are")
    return left, kept


def _normalised(site: NormSite) -> Iterable[ir.Value]:
    """What the norm's input is made of: its x, or what goes in where x exists only inside the operator."""
    if site.x is not None:
        return (site.x,)
    node = site.nodes[0]
    summands = {0, 1, SUM_BIAS[node.op_type]} if node.op_type in SUM_BIAS else range(len(node.inputs))
    return [value for place, value in enumerate(node.inputs) if place in summands and value is not None]

"""find_sites(): every norm of a model, however it is spelled, and what only looks like one."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from dynorm_onnx.graph.forms import batchnorm, centred, decomposed, fused, leave
from dynorm_onnx.graph.norm_site import NearMiss, NormSite, Refusal, SitesFound
from dynorm_onnx.graph.sites import proof
from dynorm_onnx.graph.sites.names import with_names
from dynorm_onnx.graph.values.index import GraphIndex, graph_indices
from dynorm_onnx.graph.values.node_kinds import is_op

Finding = NormSite | Refusal | NearMiss

_CONTROL_FLOW = ("If", "Loop", "Scan")
"""The operators whose bodies are graphs like any other; a search operator expects things of its decoder."""


def find_sites(model: ir.Model, load: proof.Load | None = None) -> SitesFound:
    """All norms of a model, in topological order, after those of the main graph those in bodies; it is not changed.

    Every decomposed site was proved: its nodes were run by what `load` makes of an ONNX ModelProto (feeds by input
    name to the list of outputs; onnx's reference evaluator by default) against the definition.
    Those in bodies of search operators are refused, with the reason. Shapes help, so pass a model that
    `prepare` has seen.
    """
    found: list[NormSite] = []
    refused: list[Refusal] = []
    near: list[NearMiss] = []
    indices = graph_indices(model)
    for index in indices.values():
        holders = index.holders()
        findings = _search(model, index, load)
        sites = [f for f in findings if isinstance(f, NormSite)]
        if any(not is_op(node, *_CONTROL_FLOW) for node, _ in holders):
            refused += [_refuse_in_body(f, holders) for f in findings if not isinstance(f, NearMiss)]
        else:
            found += sorted(sites, key=lambda site: index.position(site.nodes[-1]))
            refused += [f for f in findings if isinstance(f, Refusal)]
        near += [f for f in findings if isinstance(f, NearMiss)]
    return with_names(indices, found, refused, near)


def _search(model: ir.Model, index: GraphIndex, load: proof.Load | None) -> list[Finding]:
    """All finders over one graph; what they found in pieces is proved.

    A single node that is an RMSNorm of x - mean(x) becomes the LayerNorm that the three nodes are.
    """
    single = [centred.take_mean(index, f) if isinstance(f, NormSite) else f for f in fused.find(model, index)]
    prover = proof.Prover(index, load)
    batch = _proved(prover, batchnorm.find(index))
    taken = {node for finding in batch if isinstance(finding, NormSite) for node in finding.nodes}
    found = [*single, *batch, *_proved(prover, decomposed.find(index, taken))]
    return [*_apart(index, found), *leave.find(index)]


def _apart(index: GraphIndex, findings: list[Finding]) -> list[Finding]:
    """Before: x of a norm lies within another one, for finders look through Casts, and the last Cast of a norm in
    float16 is both its own and, to them, the first one of a norm in float32 that follows. After: x is the other's y,
    and no node belongs to two norms."""
    sites = [finding for finding in findings if isinstance(finding, NormSite)]
    ends: dict[ir.Value, NormSite] = {}
    for site in sites:
        values = [value for node in site.nodes for value in node.outputs if value is not site.y]
        ends |= {value: site for value in values if not index.used_outside(value, set(site.nodes))}
    apart: list[Finding] = []
    for finding in findings:
        other = ends.get(finding.x) if isinstance(finding, NormSite) and finding.x is not None else None
        if isinstance(finding, NormSite) and other is not None and other is not finding and other.y is not None:
            own = tuple(node for node in finding.nodes if node not in other.nodes)
            finding = dataclasses.replace(finding, x=other.y, nodes=own)
        apart.append(finding)
    return apart


def _proved(prover: proof.Prover, findings: list[Finding]) -> list[Finding]:
    return [prover.judge(f) if isinstance(f, NormSite) else f for f in findings]


def _refuse_in_body(finding: NormSite | Refusal, holders: list[tuple[ir.Node, str]]) -> Refusal:
    node, attribute = holders[0]
    reason = f"it lies in the {attribute} of {node.op_type} '{node.name or node.outputs[0].name}': "
    special = next(holder for holder, _ in holders if not is_op(holder, *_CONTROL_FLOW))
    reason += f"{special.op_type} runs its body in a way of its own"
    if isinstance(finding, Refusal):
        reason += f"; besides, {finding.reason}"
    return Refusal(finding.name, finding.kind, finding.form, finding.channels, finding.dtype, reason)

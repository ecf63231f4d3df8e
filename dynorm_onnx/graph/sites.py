"""find_sites(): every norm of a model, however it is spelled, and what only looks like one."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dynorm_onnx.graph import proof
from dynorm_onnx.graph.forms import batchnorm, centred, decomposed, fused, leave
from dynorm_onnx.graph.forms.index import GraphIndex
from dynorm_onnx.graph.names import with_names
from dynorm_onnx.graph.norm_site import NearMiss, NormSite, Refusal, SitesFound

Finding = NormSite | Refusal | NearMiss


def find_sites(model: ir.Model, run: proof.Run | None = None) -> SitesFound:
    """All norms of a model, in topological order; the model is not changed.

    Every decomposed site was proved: its nodes were run by `run` (an ONNX ModelProto and feeds by
    input name to the list of outputs; onnx's reference evaluator by default) against the definition.
    Norms in bodies of If, Loop, Scan and beam search are refused, with the reason. Shapes help, so
    pass a model that `prepare` has seen.
    """
    index = GraphIndex(model.graph, model.opset_imports)
    findings = _search(model, index, run)
    sites = [f for f in findings if isinstance(f, NormSite)]
    refused = [f for f in findings if isinstance(f, Refusal)]
    near = [f for f in findings if isinstance(f, NearMiss)]
    for path, body in _bodies(index, model):
        for finding in _search(model, body, run):
            if isinstance(finding, NearMiss):
                near.append(finding)
            else:
                refused.append(_refuse_in_body(finding, path))
    sites.sort(key=lambda site: index.position(site.nodes[-1]))
    return with_names(index, sites, refused, near)


def _search(model: ir.Model, index: GraphIndex, run: proof.Run | None) -> list[Finding]:
    """All finders over one graph; what they found in pieces is proved.

    A single node that is an RMSNorm of x - mean(x) becomes the LayerNorm that the three nodes are.
    """
    single = [centred.take_mean(index, f) if isinstance(f, NormSite) else f for f in fused.find(model, index)]
    prover = proof.Prover(index, run)
    batch = _proved(prover, batchnorm.find(index))
    taken = {node for finding in batch if isinstance(finding, NormSite) for node in finding.nodes}
    return [*single, *batch, *_proved(prover, decomposed.find(index, taken)), *leave.find(index)]


def _proved(prover: proof.Prover, findings: list[Finding]) -> list[Finding]:
    return [prover.judge(f) if isinstance(f, NormSite) else f for f in findings]


def _bodies(index: GraphIndex, model: ir.Model) -> Iterator[tuple[str, GraphIndex]]:
    """Every body below a graph with the names of the nodes that hold it."""
    for node in index.nodes:
        for attribute in node.attributes.values():
            graphs: list[ir.Graph] = []
            if attribute.type == ir.AttributeType.GRAPH:
                graphs = [attribute.as_graph()]
            elif attribute.type == ir.AttributeType.GRAPHS:
                graphs = list(attribute.as_graphs())
            for graph in graphs:
                body = GraphIndex(graph, model.opset_imports, parent=index)
                label = f"the {attribute.name} of {node.op_type} '{node.name or node.outputs[0].name}'"
                yield label, body
                yield from _bodies(body, model)


def _refuse_in_body(finding: NormSite | Refusal, path: str) -> Refusal:
    reason = f"it lies in {path}: a norm in a body cannot be calibrated"
    if isinstance(finding, Refusal):
        reason += f"; besides, {finding.reason}"
    return Refusal(finding.name, finding.kind, finding.form, finding.channels, finding.dtype, reason)

"""On which execution provider every node of a session ended up."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from dynorm_onnx.errors import ProviderError

log = logging.getLogger(__name__)

RECORD_PLACEMENT = ("session.record_ep_graph_assignment_info", "1")
"""Session configuration that placement() needs; runtimes that do not know it ignore it."""

_CUSTOM_DOMAIN = "dynorm"

# What carries a transformer's cost and has a CUDA kernel for every float type. Shape arithmetic, on the
# other hand, belongs on the CPU, and ONNX Runtime puts it there on purpose.
_HEAVY = frozenset(
    {
        "Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "LayerNormalization", "MatMul",
        "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PlacedNode:
    """A node of the optimised graph and the provider that runs it ("CPUExecutionProvider")."""

    name: str
    op_type: str
    domain: str
    provider: str


def placement(session: Any) -> tuple[PlacedNode, ...] | None:
    """Every node and its provider; None where ONNX Runtime (before 1.24) cannot tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    return tuple(
        PlacedNode(node.name, node.op_type, node.domain, subgraph.ep_name)
        for subgraph in session.get_provider_graph_assignment_info()
        for node in subgraph.get_nodes()
    )


def check_placement(session: Any, provider: str) -> None:
    """Raise ProviderError unless the provider (ONNX Runtime's name) runs every node that carries cost.

    Nodes of the domain dynorm and heavy operators must be there. Anything else that is placed elsewhere
    is logged: it may be shape arithmetic, which is right, or an operator without a kernel.
    """
    nodes = placement(session)
    if nodes is None:
        if provider != "CPUExecutionProvider":  # which takes what nobody else does
            log.warning("ONNX Runtime before 1.24 cannot say where nodes are placed: some may not be on %s", provider)
        return
    elsewhere = [node for node in nodes if node.provider != provider]
    heavy = [node for node in elsewhere if node.op_type in _HEAVY or node.domain == _CUSTOM_DOMAIN]
    if heavy:
        first = heavy[0]
        raise ProviderError(
            f"{provider} was asked for, but {len(heavy)} of {len(nodes)} nodes that it should run "
            f"were placed elsewhere, the first {first.op_type} {first.name!r} on {first.provider}"
        )
    if elsewhere:
        log.info("%d of %d nodes run elsewhere than on %s: %s", len(elsewhere), len(nodes), provider,
                 ", ".join(sorted({node.op_type for node in elsewhere})))  # fmt: skip

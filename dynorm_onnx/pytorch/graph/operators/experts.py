"""ONNX Runtime's mixture of experts, with plain weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from dynorm_onnx.pytorch.graph.operators.base import MICROSOFT, Node, operator

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "identity": lambda x: x,
}


@operator("MoE", domain=MICROSOFT)
def mixture_of_experts(
    node: Node,
    x: Tensor,
    router: Tensor,
    first: Tensor,
    first_bias: Tensor | None,
    second: Tensor,
    second_bias: Tensor | None = None,
    third: Tensor | None = None,
    third_bias: Tensor | None = None,
) -> Tensor:
    """Of each token [..., C] the k experts with the highest scores, each [inner, C] and back, weighted and summed."""
    if node.get("use_sparse_mixer", 0) or third is not None or third_bias is not None:
        raise node.unsupported("a sparse mixer or a third layer")
    tokens = x.reshape(-1, x.shape[-1])
    likely = torch.softmax(router.to(torch.promote_types(router.dtype, torch.float32)), -1)
    scores, chosen = torch.topk(likely, node.get("k", 1), -1)
    if node.get("normalize_routing_weights", 0):
        scores = scores / scores.sum(-1, keepdim=True)
    total = torch.zeros_like(tokens)
    for expert in range(first.shape[0]):
        rows, slots = torch.where(chosen == expert)
        inner = functional.linear(tokens[rows], first[expert], None if first_bias is None else first_bias[expert])
        given = functional.linear(
            _activated(node, inner), second[expert], None if second_bias is None else second_bias[expert]
        )
        total = total.index_add(0, rows, given * scores[rows, slots, None].to(given.dtype))
    return total.reshape(x.shape)


def _activated(node: Node, x: Tensor) -> Tensor:
    kind = node.get("activation_type", "relu")
    if kind != "swiglu":
        if kind not in _ACTIVATIONS:
            raise node.unsupported(f"the activation {kind!r}")
        return _ACTIVATIONS[kind](x)
    fusion = node.get("swiglu_fusion", 0)
    if fusion not in (1, 2):
        raise node.unsupported(f"swiglu_fusion {fusion}")
    gate, linear = (x[..., 0::2], x[..., 1::2]) if fusion == 1 else x.chunk(2, -1)
    limit = node.get("swiglu_limit")
    if limit is not None and limit > 0:
        gate, linear = gate.clamp(max=limit), linear.clamp(-limit, limit)
    gate = gate * torch.sigmoid(node.get("activation_alpha", 1.0) * gate)
    return gate * (linear + node.get("activation_beta", 0.0))

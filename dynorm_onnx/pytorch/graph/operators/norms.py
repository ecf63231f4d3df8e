"""Norms, those of ONNX and ONNX Runtime's fused ones, and the functions in their place."""

from __future__ import annotations

import torch
from torch.nn import functional

from dynorm_onnx.functions import DOMAIN, OPERATORS
from dynorm_onnx.pytorch.cores import CORES
from dynorm_onnx.pytorch.gain import gained
from dynorm_onnx.pytorch.graph.operators.base import MICROSOFT, Node, Tensor, operator


def _wide(x: Tensor) -> Tensor:
    """At least float32, which norms are computed in."""
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, axis: int = -1) -> Tensor:
    """x / sqrt(mean x^2 + epsilon) over the axes from `axis` on, times weight; in the type of x."""
    sizes = x.shape[axis:]
    y = functional.rms_norm(_wide(x), sizes, None, epsilon)
    return (y if weight is None else y * _wide(weight)).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float, axis: int = -1) -> Tensor:
    """The centred form, plus bias; in the type of x."""
    sizes = x.shape[axis:]
    y = functional.layer_norm(_wide(x), sizes, None, None, epsilon)
    y = y if weight is None else y * _wide(weight)
    return (y if bias is None else y + _wide(bias)).to(x.dtype)


@operator("LayerNormalization", domain=("", MICROSOFT))
def layer_normalization(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    """With mean and inverse deviation where they are read."""
    axis, epsilon = node.get("axis", -1) % x.ndim, node.get("epsilon", 1e-5)
    y = layer_norm(x, scale, bias, epsilon, axis)
    if node.outputs == 1:
        return y
    axes = tuple(range(axis, x.ndim))
    mean = _wide(x).mean(axes, keepdim=True)
    deviation = _wide(x).var(axes, correction=0, keepdim=True)
    return y, mean, torch.rsqrt(deviation + epsilon)


@operator("RMSNormalization")
@operator("SimplifiedLayerNormalization", domain=("", MICROSOFT))
def rms_normalization(node: Node, x: Tensor, scale: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """With the inverse root of the mean square where it is read."""
    axis, epsilon = node.get("axis", -1) % x.ndim, node.get("epsilon", 1e-5)
    y = rms_norm(x, scale, epsilon, axis).to(scale.dtype)
    if node.outputs == 1:
        return y
    square = _wide(x).square().mean(tuple(range(axis, x.ndim)), keepdim=True)
    return y, torch.rsqrt(square + epsilon)


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(
    node: Node, x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """The norm of the sum, and the sum; mean and deviation are not given out by ONNX Runtime either."""
    total = x + skip if bias is None else x + skip + bias
    return layer_norm(total, gamma, beta, node.get("epsilon", 1e-12)), None, None, total


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_normalization(
    node: Node, x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """The RMSNorm of the sum, and the sum."""
    total = x + skip if bias is None else x + skip + bias
    return rms_norm(total, gamma, node.get("epsilon", 1e-12)), None, None, total


@operator("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(
    node: Node,
    ids: Tensor,
    segments: Tensor | None,
    words: Tensor,
    positions: Tensor,
    kinds: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The norm of the sum of the embeddings, the lengths that the mask tells, and the sum."""
    if position_ids is None:
        position_ids = torch.arange(ids.shape[1], device=ids.device)[None]
    total = functional.embedding(ids.long(), words) + functional.embedding(position_ids.long(), positions)
    if segments is not None and kinds is not None:
        total = total + functional.embedding(segments.long(), kinds)
    lengths = mask.sum(1, dtype=torch.int32) if mask is not None else torch.zeros(len(ids), dtype=torch.int32)
    return layer_norm(total, gamma, beta, node.get("epsilon", 1e-12)), lengths, total


@operator("GatedRMSNorm", domain=MICROSOFT)
def gated_rms_norm(node: Node, x: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    """The RMSNorm of groups as long as the scale, times silu (or sigmoid) of the gate."""
    groups = x.reshape(*x.shape[:-1], -1, scale.shape[0])
    y = rms_norm(groups, scale, node.get("epsilon", 1e-5)).reshape(x.shape)
    wide = _wide(gate)
    opened = torch.sigmoid(wide) if node.get("activation", "silu") == "sigmoid" else functional.silu(wide)
    return (_wide(y) * opened).to(x.dtype)


@operator("GroupNormalization")
def group_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Scale and bias by channel, or by group before opset 21."""
    groups = node.get("num_groups")
    if scale.numel() != x.shape[1]:
        scale, bias = (values.repeat_interleave(x.shape[1] // groups) for values in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Every channel of every sample by itself."""
    return functional.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


@operator("BatchNormalization")
def batch_normalization(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor | tuple[Tensor, ...]:
    """With the statistics in the file."""
    if node.get("training_mode", 0):
        raise node.unsupported("training_mode")
    return functional.batch_norm(x, mean.detach(), variance.detach(), scale, bias, eps=node.get("epsilon", 1e-5))


@operator("MeanVarianceNormalization")
def mean_variance_normalization(node: Node, x: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over `axes`, by default all but the channels."""
    axes = tuple(node.get("axes") or (0, 2, 3))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


@operator("LpNormalization")
def lp_normalization(node: Node, x: Tensor) -> Tensor:
    """Length one along an axis."""
    return functional.normalize(x, p=node.get("p", 2), dim=node.get("axis", -1), eps=0.0)


@operator(*(op for op, (_, form) in OPERATORS.items() if not form.skip), domain=DOMAIN)
def function(node: Node, x: Tensor, weight: Tensor, bias: Tensor, *parameters: Tensor) -> Tensor:
    """weight core(x) + bias, computed in float32 or double; in the coupled forms weight core(g x) + bias."""
    kind, form = OPERATORS[node.op_type]
    compute = torch.promote_types(_wide(x).dtype, _wide(weight).dtype)
    own, coupling = parameters[: len(kind.parameter_names)], parameters[len(kind.parameter_names) :]
    wide = x.to(compute)
    if form.coupled:
        channels, strengths = coupling
        wide = gained(wide, channels, strengths)
    core = CORES[kind.name](wide, *(p.to(compute) for p in own))
    return torch.addcmul(bias.to(compute), weight.to(compute), core).to(x.dtype)


@operator(*(op for op, (_, form) in OPERATORS.items() if form.skip), domain=DOMAIN)
def skip_function(node: Node, x: Tensor, skip: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The function of the sum, and the sum."""
    total = x + skip
    return function(node, total, *parameters), total

"""Activation functions, and ONNX Runtime's fused ones."""

from __future__ import annotations

import torch
from torch.nn import functional

from dynorm_onnx.pytorch.graph.operators.base import MICROSOFT, Node, Tensor, operator


@operator("Relu")
def relu(node: Node, x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.relu(x)


@operator("LeakyRelu")
def leaky_relu(node: Node, x: Tensor) -> Tensor:
    """x, or alpha x below zero."""
    return functional.leaky_relu(x, node.get("alpha", 0.01))


@operator("PRelu")
def prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    """x, or slope x below zero."""
    return torch.where(x >= 0, x, slope * x)


@operator("Elu")
def elu(node: Node, x: Tensor) -> Tensor:
    """x, or alpha (exp(x) - 1) below zero."""
    return functional.elu(x, node.get("alpha", 1.0))


@operator("Selu", "Celu", "ThresholdedRelu", "Softsign")
def other_activation(node: Node, x: Tensor) -> Tensor:
    """With the defaults of ONNX for alpha and gamma."""
    if node.op_type == "Softsign":
        return functional.softsign(x)
    if node.op_type == "ThresholdedRelu":
        return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))
    if node.op_type == "Celu":
        return functional.celu(x, node.get("alpha", 1.0))
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.05070102214813232421875)
    return gamma * functional.elu(x, alpha)


@operator("Hardmax")
def hardmax(node: Node, x: Tensor) -> Tensor:
    """One where the first of the largest along an axis is, else zero; before opset 13 over all axes from `axis` on."""
    if node.opset >= 13:
        axis = node.get("axis", -1)
        return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)
    flat = x.flatten(node.get("axis", 1) % max(x.ndim, 1))
    return torch.zeros_like(flat).scatter(-1, flat.argmax(-1, keepdim=True), 1).reshape(x.shape)


@operator("Softplus")
def softplus(node: Node, x: Tensor) -> Tensor:
    """log(1 + exp(x)); torch's own is the identity above a threshold, which is not exact in double."""
    return torch.logaddexp(x, torch.zeros_like(x))


@operator("Sigmoid")
def sigmoid(node: Node, x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


@operator("HardSigmoid")
def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    """alpha x + beta, between 0 and 1."""
    return torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1)


@operator("HardSwish")
def hard_swish(node: Node, x: Tensor) -> Tensor:
    """x max(0, min(1, x / 6 + 0.5))."""
    return functional.hardswish(x)


@operator("Mish")
def mish(node: Node, x: Tensor) -> Tensor:
    """x tanh(softplus(x))."""
    return functional.mish(x)


@operator("Swish")
def swish(node: Node, x: Tensor) -> Tensor:
    """x sigmoid(alpha x); opset 24."""
    alpha = node.get("alpha", 1.0)
    return functional.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(node: Node, x: Tensor) -> Tensor:
    """x sigmoid(alpha x), with alpha 1.702 unless said."""
    return x * torch.sigmoid(node.get("alpha", 1.702) * x)


@operator("Gelu", domain=("", MICROSOFT))
def gelu(node: Node, x: Tensor) -> Tensor:
    """Exact, or by tanh where `approximate` says so."""
    return functional.gelu(x, approximate=node.get("approximate", "none"))


@operator("BiasGelu", domain=MICROSOFT)
def bias_gelu(node: Node, x: Tensor, bias: Tensor) -> Tensor:
    """The exact gelu of x + bias."""
    return functional.gelu(x + bias)


@operator("FastGelu", domain=MICROSOFT)
def fast_gelu(node: Node, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The gelu by tanh of x + bias."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("Softmax", "LogSoftmax")
def softmax(node: Node, x: Tensor) -> Tensor:
    """Over one axis; before opset 13 over all axes from `axis` on."""
    function = torch.softmax if node.op_type == "Softmax" else torch.log_softmax
    if node.opset >= 13:
        return function(x, node.get("axis", -1))
    axis = node.get("axis", 1) % max(x.ndim, 1)
    return function(x.flatten(axis), -1).reshape(x.shape)


@operator("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(node: Node, x: Tensor, bias: Tensor) -> Tensor:
    """The first half of x + bias times the gelu of the second."""
    left, right = (x + bias).chunk(2, -1)
    return left * functional.gelu(right)

"""Rotary position embeddings (Su et al., arXiv 2104.09864), in ONNX's spelling and in ONNX Runtime's."""

from __future__ import annotations

import torch

from dynorm_onnx.pytorch.graph.operators.base import MICROSOFT, Node, Tensor, operator


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Turns the first 2 r channels of x [batch, heads, length, channels] by angles [batch or 1, length, r].

    Channels i and i + r belong together, or 2 i and 2 i + 1 if `interleaved`.
    """
    cos, sin = cos.unsqueeze(1).to(x.dtype), sin.unsqueeze(1).to(x.dtype)
    size = 2 * cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        y = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        y = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([y, rest], -1) if rest.shape[-1] else y


def _as_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, length, heads * size] -> [batch, heads, length, size]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _like_input(y: Tensor, x: Tensor) -> Tensor:
    return y.transpose(1, 2).flatten(2) if x.ndim == 3 else y


@operator("RotaryEmbedding")
def rotary_embedding(node: Node, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """Tables [positions, r] indexed by `positions` [batch, length], or angles [batch, length, r] as they are."""
    heads = _as_heads(x, node.get("num_heads", 0)) if x.ndim == 3 else x
    if positions is not None:
        cos, sin = cos[positions.long()], sin[positions.long()]
    size = node.get("rotary_embedding_dim", 0)
    if size:
        cos, sin = cos[..., : size // 2], sin[..., : size // 2]
    return _like_input(rotate(heads, cos, sin, interleaved=bool(node.get("interleaved", 0))), x)


@operator("RotaryEmbedding", domain=MICROSOFT)
def microsoft_rotary_embedding(node: Node, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`positions` is [batch, length], or one offset [1] that the tokens are counted from."""
    if node.get("is_packed_batching", 0):
        raise node.unsupported("is_packed_batching")
    size = node.get("rotary_embedding_dim", 0)
    count = node.get("num_heads", 0)
    heads = _as_heads(x, count or x.shape[-1] // (2 * cos.shape[-1])) if x.ndim == 3 else x
    if positions.numel() == 1 and positions.ndim == 1:
        positions = (positions.long() + torch.arange(heads.shape[2], device=x.device))[None]
    cos, sin = cos[positions.long()], sin[positions.long()]
    if size:
        cos, sin = cos[..., : size // 2], sin[..., : size // 2]
    scale = node.get("scale", 1.0)
    if scale != 1:
        raise node.unsupported(f"the scale {scale}")
    return _like_input(rotate(heads, cos, sin, interleaved=bool(node.get("interleaved", 0))), x)

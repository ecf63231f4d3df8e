"""Attention: ONNX's operator of opset 23, and ONNX Runtime's Attention, MultiHeadAttention and GroupQueryAttention.

All come down to attend(), on heads [batch, heads, length, size].
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from dynorm_onnx.pytorch.graph.operators.base import MICROSOFT, Node, Tensor, operator
from dynorm_onnx.pytorch.graph.operators.norms import rms_norm
from dynorm_onnx.pytorch.graph.operators.rotary import rotate


def heads_of(x: Tensor, count: int) -> Tensor:
    """[batch, length, count * size] -> [batch, count, length, size]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """[batch, heads, length, size] -> [batch, length, heads * size]."""
    return x.transpose(1, 2).flatten(2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    *,
    bias: Tensor | None = None,
    softcap: float = 0.0,
    sink: Tensor | None = None,
    smooth: bool = False,
) -> Tensor:
    """softmax(scale q k^T + bias) v; fewer heads of k and v than of q are shared evenly.

    Scores are bounded to +-softcap by tanh where it is positive. `sink` [heads] (or a zero, if `smooth`) is
    one more score that takes its share of the softmax and gives nothing.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if not softcap and sink is None and not smooth:
        return functional.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype), scale=scale)
    scores = (q @ k.mT) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    scores = scores if bias is None else scores + bias
    if sink is not None or smooth:
        extra = torch.zeros(q.shape[1], dtype=scores.dtype, device=q.device) if sink is None else sink.to(scores.dtype)
        column = extra.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1] @ v
    return torch.softmax(scores, -1) @ v


def causal_bias(queries: int, keys: int, like: Tensor, *, first: int, window: int = -1) -> Tensor:
    """[queries, keys]: 0 where query i, at position first + i, may look; -inf elsewhere.

    With a window it sees its own position and the `window` - 1 before it.
    """
    at = first + torch.arange(queries, device=like.device)[:, None]
    key = torch.arange(keys, device=like.device)
    seen = key <= at
    if window > 0:
        seen = seen & (key > at - window)
    return torch.zeros(queries, keys, dtype=like.dtype, device=like.device).masked_fill(~seen, -torch.inf)


def _added(*terms: Tensor | None) -> Tensor | None:
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


def _as_bias(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of booleans as what is added to scores."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(~mask, -torch.inf)


@operator("Attention")
def attention(
    node: Node,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_k: Tensor | None = None,
    past_v: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Opset 23 and later; Q, K and V of three axes or four."""
    flat = q.ndim == 3
    if flat:
        q, k, v = heads_of(q, node.get("q_num_heads")), *(heads_of(x, node.get("kv_num_heads")) for x in (k, v))
    if node.outputs > 3:
        raise node.unsupported("the output of the scores")
    first = past_k.shape[2] if past_k is not None else 0
    if past_k is not None and past_v is not None:
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    bias = None if mask is None else _as_bias(mask, q)
    if bias is not None and bias.shape[-1] < k.shape[2]:
        bias = functional.pad(bias, (0, k.shape[2] - bias.shape[-1]), value=-torch.inf)
    causal = causal_bias(q.shape[2], k.shape[2], q, first=first) if node.get("is_causal", 0) else None
    shown = None
    if lengths is not None:
        shown = _as_bias(torch.arange(k.shape[2], device=q.device) < lengths.reshape(-1, 1, 1, 1), q)
    y = attend(q, k, v, node.get("scale"), bias=_added(bias, causal, shown), softcap=node.get("softcap", 0.0))
    return joined(y) if flat else y, k, v


@operator("Attention", domain=MICROSOFT)
def microsoft_attention(
    node: Node,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    score_bias: Tensor | None = None,
    past_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The projection of q, k and v included."""
    if node.get("do_rotary", 0) or node.get("past_present_share_buffer", 0):
        raise node.unsupported("do_rotary or past_present_share_buffer")
    count = node.get("num_heads")
    packed = x @ weight if bias is None else x @ weight + bias
    sizes = node.get("qkv_hidden_sizes") or [packed.shape[-1] // 3] * 3
    q, k, v = (heads_of(part, count) for part in packed.split(list(sizes), -1))
    first = 0
    if past is not None:
        first = past.shape[3]
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    causal = causal_bias(q.shape[2], k.shape[2], q, first=first) if node.get("unidirectional", 0) else None
    shown = _padding_bias(node, mask, q, k)
    y = joined(attend(q, k, v, node.get("scale") or None, bias=_added(score_bias, causal, shown)))
    return y, torch.stack([k, v])


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(
    node: Node,
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    score_bias: Tensor | None = None,
    past_k: Tensor | None = None,
    past_v: Tensor | None = None,
    *_: Tensor | None,
) -> tuple[Tensor, ...]:
    """q alone may be packed [batch, length, heads, 3, size], k alone [batch, length, heads, 2, size]."""
    count = node.get("num_heads")
    query, key, value = _unpacked_heads(q, k, v, count)
    if bias is not None:
        sizes = [query.shape[1] * query.shape[3], key.shape[1] * key.shape[3], value.shape[1] * value.shape[3]]
        parts = bias.split(sizes)
        query, key, value = (x + b.reshape(1, count, 1, -1) for x, b in zip((query, key, value), parts, strict=True))
    first = past_k.shape[2] if past_k is not None else 0
    if past_k is not None and past_v is not None:
        key, value = torch.cat([past_k, key], 2), torch.cat([past_v, value], 2)
    causal = None
    if node.get("unidirectional", 0):
        causal = causal_bias(query.shape[2], key.shape[2], query, first=first)
    terms = _added(score_bias, causal, _padding_bias(node, mask, query, key))
    return joined(attend(query, key, value, node.get("scale") or None, bias=terms)), key, value


def _unpacked_heads(q: Tensor, k: Tensor | None, v: Tensor | None, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three times [batch, heads, length, size]."""
    if k is None:
        query, key, value = q.transpose(1, 2).unbind(3)
        return query, key, value
    query = heads_of(q, count)
    if v is None:
        key, value = k.transpose(1, 2).unbind(3)
        return query, key, value
    return query, *(x if x.ndim == 4 else heads_of(x, count) for x in (k, v))  # type: ignore[return-value]


def _padding_bias(node: Node, mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask of ONNX Runtime's operators: lengths [batch], or ones where to look, with two axes or three."""
    if mask is None:
        return None
    keys = k.shape[2]
    if mask.ndim == 1 and mask.shape[0] == q.shape[0]:
        mask = torch.arange(keys, device=mask.device) < mask[:, None]
    elif mask.ndim == 1 or mask.ndim == 4:
        raise node.unsupported(f"a mask of shape {tuple(mask.shape)}")
    shown = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
    low = node.get("mask_filter_value", -10000.0)
    return torch.zeros(shown.shape, dtype=q.dtype, device=q.device).masked_fill(shown == 0, low)


@operator("GroupQueryAttention", domain=MICROSOFT, host=(5, 6))
def group_query_attention(
    node: Node,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    past_k: Tensor | None,
    past_v: Tensor | None,
    lengths: Tensor,
    total: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    score_bias: Tensor | None = None,
    sink: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal. `lengths` are the last positions of each row; padding lies behind a row's tokens."""
    query, key, value = _grouped_heads(node, q, k, v)
    if q_norm is not None and k_norm is not None:
        query, key = (
            rms_norm(x, weight, node.get(name) or node.get("qk_norm_epsilon") or 1e-6)
            for x, weight, name in ((query, q_norm, "q_norm_epsilon"), (key, k_norm, "k_norm_epsilon"))
        )
    first = _past_length(node, query.shape[2], lengths, total)
    if node.get("do_rotary", 0):
        assert cos is not None and sin is not None
        if positions is None:
            positions = torch.arange(first, first + query.shape[2], device=q.device)[None]
        places = positions.long()
        turned = bool(node.get("rotary_interleaved", 0))
        query, key = (rotate(x, cos[places], sin[places], interleaved=turned) for x in (query, key))
    if first and past_k is not None and past_v is not None:
        key, value = torch.cat([past_k[:, :, :first], key], 2), torch.cat([past_v[:, :, :first], value], 2)
    window = node.get("local_window_size", -1)
    seen = causal_bias(query.shape[2], key.shape[2], query, first=first, window=window)
    y = attend(
        query, key, value, node.get("scale") or None, bias=_added(seen, score_bias),
        softcap=node.get("softcap", 0.0), sink=sink, smooth=node.get("smooth_softmax", 0) > 0,
    )  # fmt: skip
    return joined(y), key, value


def _grouped_heads(node: Node, q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    count, shared = node.get("num_heads"), node.get("kv_num_heads")
    if k is not None and v is not None:
        return heads_of(q, count), heads_of(k, shared), heads_of(v, shared)
    every = heads_of(q, count + 2 * shared)
    query, key, value = every.split([count, shared, shared], 1)
    return query, key, value


def _past_length(node: Node, length: int, lengths: Tensor, total: Tensor) -> int:
    """Tokens before these; rows of a first step may differ in length, for their padding is behind them."""
    if int(total.item()) == length:
        return 0
    before = {last + 1 - length for last in lengths.reshape(-1).tolist()}
    if len(before) > 1:
        raise node.unsupported("a batch of rows with pasts of different lengths")
    return int(before.pop())

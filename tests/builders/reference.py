"""What a norm is: the definitions in float64 that every form is held against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def normalise(kind: str, x: np.ndarray, axes: Sequence[int] = (-1,), eps: float = 0.0) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) for kind "rms"; the same of x - mean(x) for kind "layer"."""
    x = np.asarray(x, np.float64)
    if kind == "layer":
        x = x - x.mean(axis=tuple(axes), keepdims=True)
    return x / np.sqrt((x * x).mean(axis=tuple(axes), keepdims=True) + eps)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-x))


def grouped_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, kv_heads: int, causal: bool = True
) -> np.ndarray:
    """Causal softmax(q k^T / sqrt(d)) v with q [B, S, heads d] and k, v [B, S, kv_heads d]."""
    batch, length, width = q.shape
    size = width // heads
    split = lambda t, n: t.reshape(batch, -1, n, size).transpose(0, 2, 1, 3)  # noqa: E731
    q, k, v = split(q, heads), split(k, kv_heads), split(v, kv_heads)
    k, v = (np.repeat(t, heads // kv_heads, axis=1) for t in (k, v))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(size)
    if causal:
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ v).transpose(0, 2, 1, 3).reshape(batch, length, width)

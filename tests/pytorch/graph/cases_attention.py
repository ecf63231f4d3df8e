"""Attention and rotary embeddings, of ONNX and of ONNX Runtime."""

from __future__ import annotations

import numpy as np

from tests.pytorch.graph.case import MS, Case, floats, ints

B, T, H, D = 2, 3, 4, 16
HIDDEN = H * D
Q, K, V = (floats(B, T, HIDDEN) for _ in range(3))
SHARED_K, SHARED_V = (floats(B, T, 2 * D) for _ in range(2))
PAST_K, PAST_V = (floats(B, H, 2, D) for _ in range(2))
BIAS = floats(1, H, T, T)
MASK = np.array([[1, 1, 1], [1, 1, 0]], np.int32)
LENGTHS, TOTAL = np.array([T - 1] * B, np.int32), np.array(T, np.int32)
LATER, MORE = np.array([T + 1] * B, np.int32), np.array(T + 2, np.int32)
COS, SIN = (
    function(np.arange(12)[:, None] * 0.3 ** np.arange(D // 2)).astype(np.float32) for function in (np.cos, np.sin)
)
NOTHING = np.zeros((B, 2, 0, D), np.float32)
SHARED_PAST_K, SHARED_PAST_V = (floats(B, 2, 2, D) for _ in range(2))
HEADS, GROUPED = {"num_heads": H}, {"num_heads": H, "kv_num_heads": 2}

STANDARD = [
    Case("Attention", [Q, K, V], {"q_num_heads": H, "kv_num_heads": H}, opset=23),
    Case("Attention", [Q, SHARED_K, SHARED_V], {"q_num_heads": H, "kv_num_heads": 2, "is_causal": 1, "scale": 0.2},
         opset=23, tag="grouped-causal"),
    Case("Attention", [floats(B, H, T, D), floats(B, H, 5, D), floats(B, H, 5, D), floats(T, 5)], {"softcap": 2.0},
         opset=23, tag="four-axes-softcap"),
    Case("Attention", [Q, K, V, np.tri(T, dtype=bool)], {"q_num_heads": H, "kv_num_heads": H}, opset=23, tag="bool"),
    Case("Attention", [Q, K, V, None, PAST_K, PAST_V], {"q_num_heads": H, "kv_num_heads": H}, opset=23, outputs=3,
         tag="past"),
    Case("RotaryEmbedding", [floats(B, H, T, D), COS, SIN, ints(0, 1, 2, 4, 5, 6, shape=(B, T))], opset=23),
    Case("RotaryEmbedding", [Q, floats(B, T, D // 2), floats(B, T, D // 2)], {"num_heads": H, "interleaved": 1},
         opset=23, tag="interleaved"),
    Case("RotaryEmbedding", [floats(B, H, T, D), COS[:, :2], SIN[:, :2], ints(0, 1, 2, 4, 5, 6, shape=(B, T))],
         {"rotary_embedding_dim": 4}, opset=23, tag="partial"),
]  # fmt: skip
MULTI_HEAD = [
    Case("MultiHeadAttention", [Q, K, V], HEADS, domain=MS),
    Case("MultiHeadAttention", [Q, K, V, floats(3 * HIDDEN)], {**HEADS, "unidirectional": 1}, domain=MS, tag="causal"),
    Case("MultiHeadAttention", [Q, K, V, None, MASK, BIAS], {**HEADS, "scale": 0.2}, domain=MS, tag="masked"),
    Case("MultiHeadAttention", [Q, floats(B, H, 5, D), floats(B, H, 5, D)], HEADS, domain=MS, tag="crossed"),
    Case("MultiHeadAttention", [Q, K, V, None, None, None, PAST_K, PAST_V], HEADS, domain=MS, outputs=3, tag="past"),
    Case("Attention", [floats(B, T, 6), floats(6, 3 * HIDDEN), floats(3 * HIDDEN)], HEADS, domain=MS),
    Case("Attention", [floats(B, T, 6), floats(6, 3 * HIDDEN), floats(3 * HIDDEN), MASK],
         {**HEADS, "unidirectional": 1}, domain=MS, tag="masked-causal"),
    Case("Attention", [floats(B, T, 6), floats(6, 3 * HIDDEN), floats(3 * HIDDEN), None, floats(2, B, H, 2, D)],
         {**HEADS, "unidirectional": 1}, domain=MS, outputs=2, tag="past"),
    Case("Attention", [floats(B, T, 6), floats(6, 3 * HIDDEN), floats(3 * HIDDEN), np.array([3, 2], np.int32)], HEADS,
         domain=MS, tag="lengths"),
]  # fmt: skip
GROUPED_QUERY = [
    Case("GroupQueryAttention", [Q, SHARED_K, SHARED_V, NOTHING, NOTHING, LENGTHS, TOTAL], GROUPED, domain=MS,
         outputs=3),
    Case("GroupQueryAttention", [Q, SHARED_K, SHARED_V, NOTHING, NOTHING, LENGTHS, TOTAL, COS, SIN],
         {**GROUPED, "do_rotary": 1, "scale": 0.3}, domain=MS, outputs=3, tag="rotary"),
    Case("GroupQueryAttention",
         [Q[:1], SHARED_K[:1], SHARED_V[:1], SHARED_PAST_K[:1], SHARED_PAST_V[:1], LATER[:1], MORE, COS, SIN],
         {**GROUPED, "do_rotary": 1, "rotary_interleaved": 1}, domain=MS, outputs=3, tag="past"),
    Case("GroupQueryAttention", [floats(B, T, 8 * D), None, None, NOTHING, NOTHING, LENGTHS, TOTAL],
         {**GROUPED, "local_window_size": 2, "softcap": 3.0}, domain=MS, outputs=3, tag="packed-window-softcap"),
    Case("GroupQueryAttention",
         [Q, SHARED_K, SHARED_V, NOTHING, NOTHING, LENGTHS, TOTAL, None, None, None, None, floats(H)], GROUPED,
         domain=MS, outputs=3, tag="sink"),
    Case("GroupQueryAttention", [Q, SHARED_K, SHARED_V, NOTHING, NOTHING, LENGTHS, TOTAL],
         {**GROUPED, "smooth_softmax": 1}, domain=MS, outputs=3, tag="smooth"),
    Case("RotaryEmbedding", [Q, ints(0, 1, 2, 4, 5, 6, shape=(B, T)), COS, SIN], domain=MS),
    Case("RotaryEmbedding", [floats(B, H, T, D), ints(3), COS, SIN], {"interleaved": 1}, domain=MS, tag="offset"),
    Case("RotaryEmbedding", [Q, ints(3), COS[:, :2], SIN[:, :2]], {"num_heads": H, "rotary_embedding_dim": 4},
         domain=MS, tag="partial"),
]  # fmt: skip
CASES = [*STANDARD, *MULTI_HEAD, *GROUPED_QUERY]

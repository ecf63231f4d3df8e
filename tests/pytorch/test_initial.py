"""The initial values for training from scratch."""

from __future__ import annotations

import math

import pytest

from dynorm_onnx.pytorch.initial import dyt_alpha, feeds_attention


@pytest.mark.parametrize(
    ("width", "attention", "other"),
    [(64, 1.0, 1.0), (1024, 1.0, 1.0), (2048, 1.0, 0.5), (4096, 0.8, 0.2), (8192, 0.2, 0.05), (16384, 0.2, 0.05)],
)
def test_the_papers_table(width: int, attention: float, other: float) -> None:
    assert dyt_alpha(width, attention=True) == pytest.approx(attention)
    assert dyt_alpha(width, attention=False) == pytest.approx(other)


def test_between_the_papers_widths() -> None:
    half_way = dyt_alpha(round(4096 * math.sqrt(2)), attention=False)
    assert half_way == pytest.approx(math.sqrt(0.2 * 0.05), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.input_layernorm", True),
        ("model.layers.3.self_attn.q_norm", True),
        ("transformer.h.1.ln_1", True),
        ("blocks.2.norm1", True),
        ("layers.0.attention_norm", True),
        ("encoder.block.0.layer.0.layer_norm", True),
        ("model.layers.0.post_attention_layernorm", False),
        ("transformer.h.1.ln_2", False),
        ("blocks.2.norm2", False),
        ("encoder.block.0.layer.1.layer_norm", False),
        ("bert.encoder.layer.0.attention.output.LayerNorm", False),
        ("model.norm", False),
    ],
)
def test_which_norms_feed_attention(name: str, expected: bool) -> None:
    assert feeds_attention(name) is expected

"""Gemma 3 out of a GGUF file: norms of queries and keys, weights that count from one, a tokenizer of characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs gguf: pip install gguf")
pytest.importorskip("tokenizers", reason="needs the extra `text`: pip install dynorm-onnx[text]")

from models.smollm2 import gguf_file, gguf_tokenizer  # noqa: E402

HIDDEN, HEAD_SIZE = 32, 16
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "t", "h", "e", "o", "th", "the", "▁the", "he"]
TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "\n\n", *BYTES, *WORDS]
NORMAL, CONTROL, USER, BYTE = 1, 3, 4, 6
TYPES = [CONTROL] * 4 + [USER] + [BYTE] * len(BYTES) + [NORMAL] * len(WORDS)
SCORES = [-1000.0] * (5 + len(BYTES)) + [-1000.0] * 5 + [-1.0, -2.0, -3.0, -4.0]


def metadata() -> dict[str, Any]:
    return {
        "general.architecture": "gemma3",
        "gemma3.block_count": 1,
        "gemma3.context_length": 128,
        "gemma3.embedding_length": HIDDEN,
        "gemma3.feed_forward_length": 64,
        "gemma3.attention.head_count": 2,
        "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.key_length": HEAD_SIZE,
        "gemma3.attention.sliding_window": 64,
        "gemma3.attention.layer_norm_rms_epsilon": np.float32(1e-6),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.scores": SCORES,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
    }


def test_norms_lose_the_one_and_queries_stay_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"attn_q": (32, 32), "attn_q_norm": (16,), "ffn_norm": (32,), "post_ffw_norm": (32,)}
    written = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "gemma3")
    for name, array in written.items():
        writer.add_tensor(f"blk.0.{name}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = gguf_file.state_dict(gguf_file.open_file(tmp_path / "tiny.gguf"), metadata())
    np.testing.assert_array_equal(found.pop("model.layers.0.self_attn.q_proj.weight"), written["attn_q"])
    for name, theirs in (
        ("self_attn.q_norm", "attn_q_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    ):
        np.testing.assert_array_equal(found.pop(f"model.layers.0.{name}.weight"), written[theirs] - 1)
    assert not found


def test_the_configuration_is_read() -> None:
    config = gguf_file.configuration(metadata())
    assert gguf_file.layout_of(metadata()).model_type == "gemma3_text"
    assert config["head_dim"] == config["query_pre_attn_scalar"] == HEAD_SIZE
    assert config["rms_norm_eps"] == 1e-6 and config["sliding_window"] == 64


def test_the_tokenizer_joins_by_score_and_falls_back_to_bytes() -> None:
    tokenizer = gguf_tokenizer.tokenizer_of(metadata())
    encoded = tokenizer.encode("the the\n\nhé")
    assert encoded.tokens == ["<bos>", "the", "▁the", "\n\n", "h", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(encoded.ids) == "the the\n\nhé"
    # "th" was joined before "he", so this cannot be "t" and "he"
    assert tokenizer.encode("otheo").tokens == ["<bos>", "o", "the", "o"]

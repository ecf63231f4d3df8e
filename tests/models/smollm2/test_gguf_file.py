"""A Llama out of a GGUF file that is written here, as llama.cpp's converter would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs gguf: pip install gguf")
pytest.importorskip("tokenizers", reason="needs the extra `text`: pip install dynorm-onnx[text]")

from models.smollm2 import gguf_file, gguf_tokenizer  # noqa: E402

HIDDEN, MIDDLE, HEADS, KEY_HEADS, LAYERS = 32, 64, 4, 2, 2
HEAD_SIZE = HIDDEN // HEADS
BYTES = ["Ġ", "Ċ", *"abcdefghijklmnopqrstuvwxyz0123456789"]
TOKENS = ["<|endoftext|>", *BYTES, "th", "the", "Ġthe"]
MERGES = ["t h", "th e", "Ġ the"]


def names() -> dict[str, tuple[int, ...]]:
    """The tensors of the file, with the shapes that NumPy gives them."""
    keys = KEY_HEADS * HEAD_SIZE
    layer = {
        "attn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN), "attn_k": (keys, HIDDEN), "attn_v": (keys, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN), "ffn_norm": (HIDDEN,), "ffn_gate": (MIDDLE, HIDDEN),
        "ffn_up": (MIDDLE, HIDDEN), "ffn_down": (HIDDEN, MIDDLE),
    }  # fmt: skip
    in_layers = {f"blk.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in layer.items()}
    return {"token_embd.weight": (len(TOKENS), HIDDEN), **in_layers, "output_norm.weight": (HIDDEN,)}


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in names().items()}


def write(path: Path, architecture: str = "llama", tokenizer: str = "smollm") -> None:
    """The file; the matrices of its MLPs quantised."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer)
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(TOKENS) - 1))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, array in weights().items():
        if "ffn_" in name and array.ndim == 2:
            packed = gguf.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def rotated(x: np.ndarray, position: int, adjacent: bool) -> np.ndarray:
    """A head's query or key [channels] at a position, by llama.cpp's pairs (adjacent) or Hugging Face's."""
    half = x.size // 2
    order = np.arange(x.size).reshape(half, 2).T if adjacent else np.arange(x.size).reshape(2, half)
    (a, b), angle = x[order], position * 1e4 ** (-np.arange(half) / half)
    turned = np.empty_like(x)
    turned[order] = a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)
    return turned


def test_queries_and_keys_meet_as_they_did() -> None:
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(2, 3 * 8, 16))
    x, y = rng.normal(size=(2, 16))
    scores = []
    for adjacent, move in ((True, lambda w: w), (False, lambda w: gguf_file.halves(w, 3))):
        queries, keys = (move(w) @ v for w, v in ((q, x), (k, y)))
        heads = zip(queries.reshape(3, 8), keys.reshape(3, 8), strict=True)
        scores.append([rotated(a, 5, adjacent) @ rotated(b, 2, adjacent) for a, b in heads])
    np.testing.assert_allclose(scores[0], scores[1])


def test_weights_come_under_hugging_face_names(path: Path) -> None:
    reader = gguf_file.open_file(path)
    found, written = gguf_file.state_dict(reader, gguf_file.metadata(reader)), weights()
    assert len(found) == len(written)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    same = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm",
        "model.layers.1.input_layernorm": "blk.1.attn_norm", "model.layers.1.self_attn.v_proj": "blk.1.attn_v",
        "model.layers.1.self_attn.o_proj": "blk.1.attn_output",
        "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
    }  # fmt: skip
    for name, theirs in same.items():
        np.testing.assert_array_equal(found[f"{name}.weight"], written[f"{theirs}.weight"])
    down, exact = found["model.layers.0.mlp.down_proj.weight"], written["blk.0.ffn_down.weight"]
    assert 0 < np.abs(down - exact).max() < np.abs(exact).max() / 127  # eight bits


def test_the_configuration_is_read(path: Path) -> None:
    config = gguf_file.configuration(gguf_file.metadata(gguf_file.open_file(path)))
    assert config["rms_norm_eps"] == 1e-5 and config["rope_theta"] == 1e4
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (HEADS, KEY_HEADS)
    assert (config["vocab_size"], config["num_hidden_layers"]) == (len(TOKENS), LAYERS)


def test_the_tokenizer_splits_digits_and_adds_nothing(path: Path) -> None:
    tokenizer = gguf_tokenizer.tokenizer_of(gguf_file.metadata(gguf_file.open_file(path)))
    encoded = tokenizer.encode("of the 42<|endoftext|>the")
    assert encoded.tokens == ["o", "f", "Ġthe", "Ġ", "4", "2", "<|endoftext|>", "the"]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == "of the 42<|endoftext|>the"


def test_other_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "other.gguf", "mamba", "bert-bpe")
    values = gguf_file.metadata(gguf_file.open_file(tmp_path / "other.gguf"))
    with pytest.raises(ValueError, match="'mamba'"):
        gguf_file.configuration(values)
    with pytest.raises(ValueError, match="bert-bpe"):
        gguf_tokenizer.tokenizer_of(values)


def test_a_folder_is_written_that_transformers_loads(path: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    from models.smollm2.weights import write_folder

    write_folder(path, tmp_path / "folder")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    state = model.state_dict()
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    np.testing.assert_array_equal(state["model.norm.weight"], weights()["output_norm.weight"])
    assert (tmp_path / "folder" / "tokenizer.json").exists()

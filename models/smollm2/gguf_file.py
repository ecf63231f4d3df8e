"""Read what a GGUF file holds of a Llama: its configuration, its weights under Hugging Face names, its tokenizer.

`pip install gguf` reads the file and undoes its quantisation. transformers has a loader of its own, which wants
accelerate and gives models that will not save.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, TokenType, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def metadata(reader: GGUFReader) -> dict[str, Any]:
    """Every key with its value in Python's own types."""
    return {name: field.contents() for name, field in reader.fields.items()}


def llama_config(values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of transformers' LlamaConfig; raises ValueError where the file is of another architecture."""
    if (name := values["general.architecture"]) != "llama":
        raise ValueError(f"the file holds a {name!r}, no 'llama'")
    heads = values["llama.attention.head_count"]
    return {
        "vocab_size": len(values["tokenizer.ggml.tokens"]),
        "hidden_size": values["llama.embedding_length"],
        "intermediate_size": values["llama.feed_forward_length"],
        "num_hidden_layers": values["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": values.get("llama.attention.head_count_kv", heads),
        "max_position_embeddings": values["llama.context_length"],
        # float32 in the file: 9.999999747e-06 was meant to be 1e-5
        "rms_norm_eps": float(f"{values['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": values["llama.rope.freq_base"],
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "pad_token_id": values.get("tokenizer.ggml.padding_token_id"),
    }


def llama_weights(reader: GGUFReader, values: dict[str, Any]) -> dict[str, np.ndarray]:
    """The float32 state dict of a LlamaForCausalLM; without lm_head.weight where it is the embedding's."""
    heads = values["llama.attention.head_count"]
    rotated = {"attn_q": heads, "attn_k": values.get("llama.attention.head_count_kv", heads)}
    found = {}
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in WHOLE:
            found[WHOLE[tensor.name]] = weights
            continue
        _, layer, part, kind = tensor.name.split(".")
        if part in rotated:
            weights = halves(weights, rotated[part])
        found[f"model.layers.{layer}.{IN_LAYER[part]}.{kind}"] = weights
    return found


def halves(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k matrix in Hugging Face's order.

    A rotary embedding turns pairs of channels. llama.cpp has the two of a pair side by side, Hugging Face half a
    head apart.
    """
    pairs = weights.reshape(heads, -1, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def byte_pair_tokenizer(values: dict[str, Any]) -> Tokenizer:
    """The byte-level BPE of the file. Digits stand alone, as in SmolLM; it adds no token of its own.

    Raises ValueError for a tokenizer of another kind.
    """
    kind = values["tokenizer.ggml.model"], values.get("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"the tokenizer is {kind}, not ('gpt2', 'smollm')")
    tokens = values["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = values["tokenizer.ggml.token_type"]
    control = [token for token, type_ in zip(tokens, types, strict=True) if type_ == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return tokenizer


def open_file(path: Path) -> GGUFReader:
    """The file mapped into memory."""
    return GGUFReader(path)

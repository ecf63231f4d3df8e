"""How GGUF names and stores the parts of an architecture, and how transformers does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

_COMMON = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
"""What no layer holds, the same in every layout."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """One of LAYOUTS."""

    model_type: str  # as transformers calls it
    in_layer: dict[str, str]
    config: Callable[[dict[str, Any]], dict[str, Any]]  # from the keys of GGUF without the architecture in front
    adjacent_pairs: bool  # whether a rotary embedding's pairs of channels are side by side in the file
    added_to_norms: float  # in the file, to the norms' weights that transformers keeps


def _sizes(values: dict[str, Any]) -> dict[str, Any]:
    heads = values["attention.head_count"]
    return {
        "hidden_size": values["embedding_length"],
        "intermediate_size": values["feed_forward_length"],
        "num_hidden_layers": values["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": values.get("attention.head_count_kv", heads),
        "max_position_embeddings": values["context_length"],
        # float32 in the file: 9.999999747e-06 was meant to be 1e-5
        "rms_norm_eps": float(f"{values['attention.layer_norm_rms_epsilon']:.6g}"),
    }


def _llama(values: dict[str, Any]) -> dict[str, Any]:
    return {**_sizes(values), "rope_theta": values["rope.freq_base"]}


def _gemma3(values: dict[str, Any]) -> dict[str, Any]:
    # Which layers have a window, and their rotary base, is in no file: transformers has it as its default.
    return {
        **_sizes(values),
        "head_dim": values["attention.key_length"],
        "query_pre_attn_scalar": values["attention.key_length"],
        "sliding_window": values["attention.sliding_window"],
    }


LAYOUTS = {
    "llama": Layout("llama", {**_COMMON, "ffn_norm": "post_attention_layernorm"}, _llama, True, 0.0),
    "gemma3": Layout(
        "gemma3_text",
        {
            **_COMMON,
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        _gemma3,
        adjacent_pairs=False,
        added_to_norms=1.0,
    ),
}

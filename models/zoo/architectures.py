"""Tiny but complete models of the architectures that people export: every kind of layer, random weights.

Each one is a Hugging Face config with few, narrow layers; nothing is downloaded. What is drawn is the
same in every run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import transformers

VOCABULARY = 160
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GROUPED: dict[str, Any] = {**_SIZES, **_TOKENS, "num_key_value_heads": 2}  # two query heads share keys and values
_LETTERED: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 64, **_TOKENS}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One row of the table."""

    name: str  # on the command line
    title: str
    norms: str  # what its norms are like, in a few words
    model: str  # the class in transformers
    config: Callable[[], transformers.PretrainedConfig]
    # what torch.onnx needs to be able to export it, as in models.zoo.subject.prepared()
    attention: str | None = None
    experts: str | None = None
    fixed_length: bool = False

    def build(self, seed: int = 0) -> transformers.PreTrainedModel:
        """The model with random float32 weights, ready to be exported."""
        torch.manual_seed(seed)
        config = self.config()
        config.architectures = [self.model]
        return getattr(transformers, self.model)(config).eval()


def _gemma3() -> transformers.PretrainedConfig:
    return transformers.Gemma3TextConfig(
        **_GROUPED, head_dim=16, query_pre_attn_scalar=16, sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip


def _gpt_oss() -> transformers.PretrainedConfig:
    return transformers.GptOssConfig(
        **_GROUPED, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip


def _t5() -> transformers.PretrainedConfig:
    return transformers.T5Config(
        vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_decoder_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
    )  # fmt: skip


def _vit() -> transformers.PretrainedConfig:
    return transformers.ViTConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
    )  # fmt: skip


def _whisper() -> transformers.PretrainedConfig:
    return transformers.WhisperConfig(
        **_LETTERED, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=96, decoder_ffn_dim=96, num_mel_bins=16, max_source_positions=1500, max_target_positions=64,
        decoder_start_token_id=1,
    )  # fmt: skip


def _mamba2() -> transformers.PretrainedConfig:
    return transformers.Mamba2Config(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_heads=8, head_dim=16, state_size=8, expand=2,
        n_groups=1, conv_kernel=4, chunk_size=8, **_TOKENS,
    )  # fmt: skip


def _qwen3_next() -> transformers.PretrainedConfig:
    return transformers.Qwen3NextConfig(
        **_GROUPED, head_dim=16, layer_types=["linear_attention", "full_attention"], linear_key_head_dim=16,
        linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=48, shared_expert_intermediate_size=48,
    )  # fmt: skip


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("llama", "Llama", "RMSNorm", "LlamaForCausalLM", lambda: transformers.LlamaConfig(**_GROUPED)),
        Architecture(
            "mistral", "Mistral", "RMSNorm", "MistralForCausalLM",
            lambda: transformers.MistralConfig(**_GROUPED, sliding_window=16),
        ),
        Architecture(
            "phi3", "Phi-3", "RMSNorm, packed projections", "Phi3ForCausalLM",
            lambda: transformers.Phi3Config(**_GROUPED, original_max_position_embeddings=128),
        ),
        Architecture(
            "qwen3", "Qwen3", "RMSNorm, also of queries and keys", "Qwen3ForCausalLM",
            lambda: transformers.Qwen3Config(**_GROUPED, head_dim=16),
        ),
        Architecture(
            "gemma3", "Gemma 3", "RMSNorm with 1 + w, four a layer, and of queries and keys", "Gemma3ForCausalLM",
            _gemma3,
        ),
        Architecture(
            "olmo2", "OLMo 2", "RMSNorm after the sublayers, and of queries and keys", "Olmo2ForCausalLM",
            lambda: transformers.Olmo2Config(**_GROUPED),
        ),
        Architecture(
            "gpt-oss", "GPT-OSS", "RMSNorm, weight before the cast; experts", "GptOssForCausalLM", _gpt_oss,
            experts="batched_mm",
        ),
        Architecture(
            "t5", "T5", "RMSNorm, encoder and decoder", "T5ForConditionalGeneration", _t5,
            attention="eager",
        ),
        Architecture(
            "bert", "BERT", "LayerNorm after the sublayers", "BertForMaskedLM",
            lambda: transformers.BertConfig(**_SIZES),
        ),
        Architecture(
            "gpt2", "GPT-2", "LayerNorm", "GPT2LMHeadModel",
            lambda: transformers.GPT2Config(
                vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2,
            ),
        ),
        Architecture("vit", "ViT", "LayerNorm, images", "ViTForImageClassification", _vit),
        Architecture(
            "whisper", "Whisper", "LayerNorm, encoder and decoder", "WhisperForConditionalGeneration", _whisper,
        ),
        Architecture("mamba2", "Mamba 2", "RMSNorm, gated before", "Mamba2ForCausalLM", _mamba2, fixed_length=True),
        Architecture(
            "qwen3-next", "Qwen3-Next", "RMSNorm with 1 + w, gated after, and of queries and keys",
            "Qwen3NextForCausalLM", _qwen3_next, experts="batched_mm", fixed_length=True,
        ),
    )
}  # fmt: skip

"""Tiny models of Hugging Face architectures from configs, with random weights and norms that are not all ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")

VOCABULARY = 97
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4}
_LAYERS = {"num_hidden_layers": 1, "max_position_embeddings": 64}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER = {**_SIZES, **_LAYERS, **_TOKENS, "num_key_value_heads": 2, "use_cache": False}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How to build a model, and how many norms of which kind it has."""

    build: Callable[[], nn.Module]
    norms: int
    kind: str
    images: bool = False


ARCHITECTURES = {
    "llama": Architecture(
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**_DECODER, "num_hidden_layers": 2})),
        norms=5,
        kind="rms",
    ),
    "qwen3": Architecture(
        lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_DECODER, head_dim=16)), norms=5, kind="rms"
    ),
    "gemma3": Architecture(
        lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**_DECODER, head_dim=16)),
        norms=7,
        kind="rms",
    ),
    "bert": Architecture(
        lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_SIZES, **_LAYERS)), norms=4, kind="layer"
    ),
    "gpt2": Architecture(
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=48,
                n_layer=1,
                n_head=4,
                n_positions=64,
                use_cache=False,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        norms=3,
        kind="layer",
    ),
    "vit": Architecture(
        lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(
                hidden_size=48,
                intermediate_size=80,
                num_hidden_layers=1,
                num_attention_heads=4,
                image_size=16,
                patch_size=4,
                num_labels=9,
            )
        ),
        norms=3,
        kind="layer",
        images=True,
    ),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A model in eval mode whose vectors (norm weights and biases among them) are random."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[name].build()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def inputs(name: str, rows: int, length: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs, by the name of the model's argument."""
    generator = torch.Generator().manual_seed(seed)
    if ARCHITECTURES[name].images:
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
    return {"input_ids": torch.randint(3, VOCABULARY, (rows, length), generator=generator)}


def dynamic_shapes(name: str) -> dict[str, Any]:
    """The batch free, and the length of text."""
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    if ARCHITECTURES[name].images:
        return {"pixel_values": {0: batch}}
    return {"input_ids": {0: batch, 1: sequence}}

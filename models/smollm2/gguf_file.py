"""Read what a GGUF file holds of a language model: its configuration, and its weights as transformers names them.

`pip install gguf` reads the file and undoes its quantisation. transformers has a loader of its own, which wants
accelerate and gives models that will not save.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize

from models.smollm2.layouts import LAYOUTS, WHOLE, Layout


def open_file(path: Path) -> GGUFReader:
    """The file, mapped into memory."""
    return GGUFReader(path)


def metadata(reader: GGUFReader) -> dict[str, Any]:
    """Every key with its value in Python's own types."""
    return {name: field.contents() for name, field in reader.fields.items()}


def layout_of(values: dict[str, Any]) -> Layout:
    """The layout of the file's architecture; raises ValueError where it is none of LAYOUTS."""
    if (name := values["general.architecture"]) not in LAYOUTS:
        raise ValueError(f"the file holds a {name!r}, none of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def configuration(values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of transformers' configuration class."""
    layout, prefix = layout_of(values), values["general.architecture"] + "."
    return {
        **layout.config({key.removeprefix(prefix): value for key, value in values.items()}),
        "vocab_size": len(values["tokenizer.ggml.tokens"]),
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "pad_token_id": values.get("tokenizer.ggml.padding_token_id"),
    }


def state_dict(reader: GGUFReader, values: dict[str, Any]) -> dict[str, np.ndarray]:
    """The float32 weights; without lm_head.weight where the embedding serves for it."""
    layout, config = layout_of(values), configuration(values)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = {}
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        *layer, part, kind = tensor.name.split(".")
        if part in heads and layout.adjacent_pairs:
            weights = halves(weights, heads[part])
        if part.endswith("norm"):
            weights = weights - np.float32(layout.added_to_norms)
        name = f"model.layers.{layer[1]}.{layout.in_layer[part]}" if layer else WHOLE[part]
        found[f"{name}.{kind}"] = weights
    return found


def halves(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k matrix in transformers' order.

    A rotary embedding turns pairs of channels. llama.cpp has the two of a pair side by side, transformers half a
    head apart.
    """
    pairs = weights.reshape(heads, -1, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)

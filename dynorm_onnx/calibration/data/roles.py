"""What a graph input is for, as its name tells: the names of Optimum, torch.onnx and onnxruntime-genai."""

from __future__ import annotations

import re
from typing import Literal

import onnx_ir as ir

Role = Literal[
    "token_ids",  # [batch, length] integers that index the vocabulary
    "decoder_token_ids",  # the same, for the decoder of an encoder-decoder model in one graph
    "attention_mask",  # 1 where there is a token: [batch, past + length], or rank 4
    "position_ids",
    "token_type_ids",
    "past",  # keys, values or other state of the steps before
    "cache_flag",  # bool: whether `past` holds anything
    "cache_position",  # [length]: the index of each token
    "sequence_lengths",  # [batch]: GroupQueryAttention's seqlens_k, the total length minus one
    "total_length",  # past + length
    "past_length",
    "logits_to_keep",  # 0: all of them
    "encoder_states",  # [batch, encoder length, channels] floats
    "weight",  # of fixed shape, and read as a weight alone: one for all samples (fed_weights.py)
    "unread",  # nobody reads it, so anything will do
    "other",
]

WHOLE_BATCH: tuple[Role, ...] = (
    "cache_flag",
    "cache_position",
    "total_length",
    "past_length",
    "logits_to_keep",
)
"""Roles of inputs that do not differ between the samples of a batch."""

# the first that is found decides
_INTEGER_NAMES: tuple[tuple[str, Role], ...] = (
    (r"mask(?!ed)", "attention_mask"),
    (r"cache_position", "cache_position"),
    (r"position|(^|_)pos(_|$)", "position_ids"),
    (r"token_?type|segment", "token_type_ids"),
    (r"seqlens?_k", "sequence_lengths"),
    (r"total_seq\w*len", "total_length"),
    (r"past_seq\w*len|past_len", "past_length"),
    (r"logits_to_keep", "logits_to_keep"),
    (r"decoder_input_ids", "decoder_token_ids"),
    (r"(^|[_./:])(input_ids|tokens?|token_ids|ids|input_tokens|idx)($|[_.:]?\d+$)", "token_ids"),
)
_FLOAT_NAMES: tuple[tuple[str, Role], ...] = (
    (r"mask(?!ed)", "attention_mask"),
    (r"encoder_hidden_states|encoder_outputs?|encoder_states", "encoder_states"),
    (r"(^|[_./:])past|cache|(conv|ssm|recurrent)_?states?", "past"),
)
_BOOL_NAMES: tuple[tuple[str, Role], ...] = (
    (r"mask(?!ed)", "attention_mask"),
    (r"use_cache", "cache_flag"),
)


def role_by_name(name: str, dtype: ir.DataType) -> Role:
    """The role of a graph input by its name and type; "other" where they say nothing."""
    if dtype == ir.DataType.BOOL:
        table = _BOOL_NAMES
    elif dtype.is_integer():
        table = _INTEGER_NAMES
    else:
        table = _FLOAT_NAMES
    for pattern, role in table:
        if re.search(pattern, name, re.IGNORECASE):
            return role
    return "other"

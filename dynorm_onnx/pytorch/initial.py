"""The papers' initial values, for training from scratch."""

from __future__ import annotations

import itertools
import math
import re

ALPHA_ELSEWHERE = 0.5
"""alpha of DyT in anything but a language model, and of Derf everywhere (its shift begins at 0)."""

# arXiv 2503.10622, table 12: width: (alpha of the norm before attention, of all others) in Llama. Depth has no say.
_DYT_ALPHA = {1024: (1.0, 1.0), 2048: (1.0, 0.5), 4096: (0.8, 0.2), 8192: (0.2, 0.05)}

_BEFORE_ATTENTION = re.compile(
    r"(?:^|[._])(?:input_layernorm|attention_norm|attn_norm|pre_attn\w*|norm_attn|ln_1|ln1|norm1|layer_norm1"
    r"|layernorm_before|self_attn_layer_norm|q_norm|k_norm|q_layernorm|k_layernorm|SelfAttention\w*|layer\.0\.layer_norm)$"
)
_AFTER_ATTENTION = re.compile(r"post_\w*(?:attention|attn)|attention\.output|attn_out")


def dyt_alpha(width: int, *, attention: bool) -> float:
    """DyT's initial alpha in a language model with `width` channels in its stream.

    Between the widths of the paper's table log alpha is interpolated over log width; beyond its ends the
    nearest value holds. `attention` is for a norm whose output attention reads.
    """
    widths, column = sorted(_DYT_ALPHA), 0 if attention else 1
    if width <= widths[0]:
        return _DYT_ALPHA[widths[0]][column]
    for low, high in itertools.pairwise(widths):
        if width <= high:
            share = math.log(width / low) / math.log(high / low)
            return float(_DYT_ALPHA[low][column] ** (1 - share) * _DYT_ALPHA[high][column] ** share)
    return _DYT_ALPHA[widths[-1]][column]


def feeds_attention(name: str) -> bool:
    """Whether a norm of that module path is before attention (or on its queries and keys), by usual names.

    A guess, for initial values only: alpha is trained.
    """
    return bool(_BEFORE_ATTENTION.search(name)) and not _AFTER_ATTENTION.search(name)

"""How much each token counts when parameters are fitted.

Padding counts nothing. In a causal model a token at position i of T is read by all that follow; if
they spread their attention evenly over what they see, it receives sum_{t >= i} 1 / (t + 1), which is
about 1 + ln(T / (i + 1)). First tokens, whose activations are far off the others' in many models,
thereby count for what they do to the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.data import signature
from dynorm_onnx.runtime.arrays import Feeds
from dynorm_onnx.runtime.logits import LogitsOutput, is_causal
from dynorm_onnx.runtime.pieces import open_for_batches


def token_weights(feeds: Feeds, tokens: str | None, *, causal: bool) -> np.ndarray | None:
    """[batch, length] float32 for the ids in `feeds[tokens]`; None for a model without tokens."""
    ids = feeds.get(tokens) if tokens is not None else None
    if ids is None or ids.ndim != 2:
        return None
    mask = feeds.get("attention_mask")
    kept = np.ones(ids.shape, np.float32)
    if mask is not None and mask.ndim == 2 and mask.shape[0] == ids.shape[0]:
        kept = mask[:, -ids.shape[1] :].astype(np.float32)  # a cache's positions come first
    if not causal:
        return kept
    length = ids.shape[1]
    return kept * (1 + np.log(length / (np.arange(length) + 1.0))).astype(np.float32)


def row_weights(weights: np.ndarray | None, array: np.ndarray) -> np.ndarray:
    """The weights of the rows that `array` [..., C] has when it is flattened to [rows, C].

    The token axes are found by their sizes: [batch, length, ...], [batch, heads, length, ...] or
    [batch * length, ...]; rows that are no tokens count one each.
    """
    rows = array.shape[:-1]
    ones = np.ones(int(np.prod(rows)), np.float32)
    if weights is None:
        return ones
    batch, length = weights.shape
    if rows[:1] == (batch * length,) and rows[:2] != (batch, length):
        return np.repeat(weights.reshape(-1), ones.size // weights.size)
    for axis in range(1, len(rows)):
        if rows[0] == batch and rows[axis] == length:
            shape = [1] * len(rows)
            shape[0], shape[axis] = batch, length
            return np.broadcast_to(weights.reshape(shape), rows).reshape(-1)
    return ones


def weights_of_batches(model: ir.Model, batches: Sequence[Feeds]) -> list[np.ndarray | None]:
    """token_weights() of every batch; whether the model is causal is found by running it once."""
    what = signature(model)
    tokens = what.tokens.name if what.tokens is not None else None
    causal = False
    if tokens is not None and what.logits is not None and batches:
        causal = is_causal(open_for_batches(model), batches[0], LogitsOutput(what.logits, tokens, aligned=True))
    return [token_weights(feeds, tokens, causal=causal) for feeds in batches]

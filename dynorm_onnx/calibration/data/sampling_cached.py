"""Text sampled with the model's own cache: one token a step, what comes out of the state goes in again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dynorm_onnx.calibration.data.drawing import Progress, draw
from dynorm_onnx.calibration.data.missing import complete, growing_axis
from dynorm_onnx.calibration.data.signature import ModelSignature
from dynorm_onnx.runtime.arrays import Feeds, run

_ROWS = 32  # sampled at once
_CACHE_BYTES = 2**28


def cache_grows(signature: ModelSignature) -> bool:
    """Whether the state that the model gives out can go in again at the next step."""
    pasts = signature.with_role("past")
    growing = any(growing_axis(spec) is not None for spec in pasts)
    return growing and len(signature.presents) == len(pasts)


def sample_with_cache(
    signature: ModelSignature,
    session: Any,
    rng: np.random.Generator,
    starts: np.ndarray,
    length: int,
    progress: Progress,
) -> np.ndarray:
    """Texts that begin with `starts`, int64 [n]: int64 [n, length]."""
    assert signature.tokens is not None and signature.logits is not None
    texts = np.zeros((starts.size, length), np.int64)
    texts[:, 0] = starts
    size = signature.fixed_batch or _rows(signature, length)
    for first in range(0, starts.size, size):
        rows = texts[first : first + size]
        batch = signature.fixed_batch or len(rows)
        feeds: Feeds = {signature.tokens.name: np.resize(rows[:, 0], (batch, 1))}
        for column in range(1, length):
            whole = complete(feeds, signature, rng)
            outputs = run(session, whole, [signature.logits, *signature.presents.values()])
            logits = outputs[signature.logits].reshape(batch, -1, signature.tokens.bound or 1)
            drawn = draw(logits[:, -1], rng)
            rows[:, column] = drawn[: len(rows)]
            feeds = {past: outputs[present] for past, present in signature.presents.items()}
            feeds |= {spec.name: whole[spec.name] for spec in signature.with_role("encoder_states")}
            feeds[signature.tokens.name] = drawn[:, None]
            progress(first * length + len(rows) * (column + 1), texts.size)
    return texts


def _rows(signature: ModelSignature, length: int) -> int:
    """Texts that are sampled at once, so that their cache stays within bounds."""
    token_bytes = sum(
        math.prod(dim for dim in spec.shape or () if isinstance(dim, int)) * spec.dtype.itemsize
        for spec in signature.with_role("past")
    )
    return max(1, min(_ROWS, _CACHE_BYTES // (token_bytes * length)))

"""One token drawn from each row of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from dynorm_onnx.errors import ModelError

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (tokens done, tokens in all)."""


def draw(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Samples of softmax(logits) over the last axis: int64, the shape of logits without that axis.

    Raises ModelError where a row's largest logit is not finite.
    """
    wide = logits.astype(np.float32)
    top = wide.max(-1, keepdims=True)
    if not np.isfinite(top).all():
        raise ModelError("the model's logits are not finite, so it cannot write text to calibrate on")
    cumulated = np.exp(wide - top).cumsum(-1, dtype=np.float64)
    threshold = rng.random(top.shape) * cumulated[..., -1:]
    return (cumulated > threshold).argmax(-1)

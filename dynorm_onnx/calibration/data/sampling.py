"""A causal language model writes its own text: samples at temperature 1, with its cache where it has one."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynorm_onnx.calibration.data.drawing import Progress
from dynorm_onnx.calibration.data.sampling_cached import cache_grows, sample_with_cache
from dynorm_onnx.calibration.data.sampling_whole import sample_without_cache
from dynorm_onnx.calibration.data.signature import ModelSignature


def sample_texts(
    signature: ModelSignature,
    session: Any,
    rng: np.random.Generator,
    *,
    count: int,
    length: int,
    first_token: int | None,
    progress: Progress,
) -> np.ndarray:
    """Texts sampled from a causal language model that takes token ids [batch, length].

    Args:
        session: an onnxruntime.InferenceSession of the model.
        count: texts wanted.
        length: tokens of each, the first one included.
        first_token: what each begins with; None begins each with a random token.
        progress: called with (tokens done, tokens in all).

    Returns:
        int64 [count, length].

    Raises:
        ModelError: the logits are not finite.
        DataError: the model takes an input that cannot be made.
    """
    tokens = signature.tokens
    assert tokens is not None and tokens.bound
    if first_token is not None and first_token < tokens.bound:
        starts = np.full(count, first_token, np.int64)
    else:
        starts = rng.integers(0, tokens.bound, count)
    sample = sample_with_cache if cache_grows(signature) else sample_without_cache
    return sample(signature, session, rng, starts, length, progress)

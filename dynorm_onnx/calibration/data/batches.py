"""Rows of token ids joined to batches of one shape, bounded in size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from dynorm_onnx.calibration.data.signature import ModelSignature
from dynorm_onnx.errors import DataError
from dynorm_onnx.runtime.arrays import Feeds

BATCH_TOKENS = 2048
BATCH_SAMPLES = 64
LOGITS_BYTES = 2**28  # the largest output of a language model, by far
COMPARED_LOGITS_BYTES = 2**26  # where two models' outputs are there at once


def batch_size(signature: ModelSignature, length: int, logits_bytes: int = LOGITS_BYTES) -> int:
    """Samples of `length` tokens in one batch: the model's own number, else as many as the bounds allow."""
    if signature.fixed_batch is not None:
        return signature.fixed_batch
    tokens = BATCH_TOKENS
    if signature.logits is not None and signature.tokens is not None and signature.tokens.bound:
        tokens = min(tokens, logits_bytes // (4 * signature.tokens.bound))
    return max(1, min(BATCH_SAMPLES, tokens // length))


def batch_rows(rows: Sequence[np.ndarray], signature: ModelSignature, logits_bytes: int = LOGITS_BYTES) -> list[Feeds]:
    """Batches of rows of token ids (integers [n], of any lengths): the token input, and a mask where needed.

    Rows are grouped by length, so that nothing is padded unless the model fixes a size; then rows are
    padded where the model takes a mask, and joined end to end where it does not.

    Raises DataError where the model takes no token ids.
    """
    tokens = signature.tokens
    if tokens is None or tokens.shape is None:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise DataError(f"the data is text, but none of the model's inputs takes token ids: {names}")
    if len(tokens.shape) == 1:
        return [{tokens.name: row} for row in _of_fixed_length(rows, signature)]
    groups = _groups(_of_fixed_length(rows, signature), signature, logits_bytes)
    return [_batch(group, signature) for group in groups]


def _of_fixed_length(rows: Sequence[np.ndarray], signature: ModelSignature) -> list[np.ndarray]:
    length = signature.fixed_length
    if length is None or takes_mask(signature):
        return list(rows)
    stream = np.concatenate(rows)
    whole = stream.size // length
    if whole == 0:
        raise DataError(f"the model takes exactly {length} tokens and no mask; the data has {stream.size}")
    return list(stream[: whole * length].reshape(whole, length))


def takes_mask(signature: ModelSignature) -> bool:
    """Whether padding can be told from tokens: an attention mask [batch, length]."""
    return any(len(spec.shape or ()) == 2 for spec in signature.with_role("attention_mask"))


def _groups(rows: list[np.ndarray], signature: ModelSignature, logits_bytes: int) -> list[list[np.ndarray]]:
    """Rows that go together in a batch, each group of the size that the model fixes."""
    rows = sorted(rows, key=len)
    fixed = signature.fixed_batch
    if fixed is not None and takes_mask(signature):
        return _filled(rows, fixed)
    groups: list[list[np.ndarray]] = []
    for length, alike in itertools.groupby(rows, key=len):
        size = batch_size(signature, signature.fixed_length or length, logits_bytes)
        same = list(alike)
        if fixed is not None:
            groups += _filled(same, fixed)
        else:
            groups += [same[start : start + size] for start in range(0, len(same), size)]
    return groups


def _filled(rows: list[np.ndarray], size: int) -> list[list[np.ndarray]]:
    """Groups of exactly `size` rows; what is left over goes, unless it is all there is: then rows repeat."""
    if len(rows) < size:
        return [list(itertools.islice(itertools.cycle(rows), size))]
    return [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]


def _batch(rows: list[np.ndarray], signature: ModelSignature) -> Feeds:
    tokens = signature.tokens
    assert tokens is not None
    lengths = np.array([row.size for row in rows])
    width = signature.fixed_length or int(lengths.max())
    ids = np.zeros((len(rows), width), np.int64)
    mask = np.arange(width) < lengths[:, None]
    ids[mask] = np.concatenate(rows)
    feeds = {tokens.name: ids}
    if not mask.all():
        feeds |= {
            spec.name: mask.astype(spec.dtype)
            for spec in signature.with_role("attention_mask")
            if len(spec.shape or ()) == 2
        }
    return feeds

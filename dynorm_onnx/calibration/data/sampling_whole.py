"""Text sampled from a model without a cache, which computes its whole context again at every step.

Two things keep this affordable. The context is bounded, so that the cost grows with the length of a
text and not with its square. And each step checks several guessed tokens at once: a guess is kept
where the model, sampled at its place, draws that same token, so that guesses change the speed of
sampling and not its distribution.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynorm_onnx.calibration.data.batches import LOGITS_BYTES, takes_mask
from dynorm_onnx.calibration.data.drafts import Drafts
from dynorm_onnx.calibration.data.drawing import Progress, draw
from dynorm_onnx.calibration.data.missing import complete
from dynorm_onnx.calibration.data.signature import ModelSignature
from dynorm_onnx.runtime.arrays import run

_ROWS = 32  # sampled at once
_CONTEXT = 64  # tokens that a step looks back
_GUESSES = 4  # tokens that a step checks beside the one that it draws


def sample_without_cache(
    signature: ModelSignature,
    session: Any,
    rng: np.random.Generator,
    starts: np.ndarray,
    length: int,
    progress: Progress,
) -> np.ndarray:
    """Texts that begin with `starts`, int64 [n]: int64 [n, length]."""
    drafts = Drafts()
    texts = [[int(start)] for start in starts]
    size = _rows(signature, starts.size)
    waiting = list(range(len(texts)))
    active: list[int] = []
    while waiting or active:
        while waiting and len(active) < size:
            active.append(waiting.pop(0))
        rows = [texts[index] for index in active]
        guesses = [drafts.guess(row, _guesses(signature)) for row in rows]
        for row, more in zip(rows, _next_tokens(signature, session, rng, rows, guesses), strict=True):
            row += more[: length - len(row)]
            drafts.learn(row, len(more))
        active = [index for index in active if len(texts[index]) < length]
        progress(sum(map(len, texts)), len(texts) * length)
    return np.array(texts, np.int64)


def _next_tokens(
    signature: ModelSignature,
    session: Any,
    rng: np.random.Generator,
    rows: list[list[int]],
    guesses: list[list[int]],
) -> list[list[int]]:
    """At least one token for each row: as many as its guesses were right, and one more."""
    assert signature.tokens is not None and signature.logits is not None
    seen = [_context(row, signature) for row in rows]
    ids, present = _padded([row + guess for row, guess in zip(seen, guesses, strict=True)], signature)
    feeds = {signature.tokens.name: ids}
    if takes_mask(signature):
        masks = signature.with_role("attention_mask")
        feeds |= {spec.name: present.astype(spec.dtype) for spec in masks if len(spec.shape or ()) == 2}
    outputs = run(session, complete(feeds, signature, rng), [signature.logits])
    logits = outputs[signature.logits].reshape(*ids.shape, -1)
    return [
        _accepted(draw(logits[index, len(row) - 1 : len(row) + len(guess)], rng), guess)
        for index, (row, guess) in enumerate(zip(seen, guesses, strict=True))
    ]


def _context(row: list[int], signature: ModelSignature) -> list[int]:
    size = _CONTEXT if signature.fixed_length is None else signature.fixed_length - _guesses(signature)
    if len(row) <= size:
        return row
    # the first token stays: attention that finds nothing else to look at rests on it
    return [row[0], *row[len(row) - size + 1 :]]


def _padded(rows: list[list[int]], signature: ModelSignature) -> tuple[np.ndarray, np.ndarray]:
    """(token ids, whether there is one), [batch, length]; padded on the right, where no token looks."""
    width = signature.fixed_length or max(map(len, rows))
    batch = signature.fixed_batch or len(rows)
    ids = np.zeros((batch, width), np.int64)
    present = np.zeros((batch, width), bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        present[index, : len(row)] = True
    present[len(rows) :] = True  # a row of padding alone would be a softmax over nothing
    return ids, present


def _guesses(signature: ModelSignature) -> int:
    """Guesses for each step: as many as leave most of a fixed length to the context."""
    return _GUESSES if signature.fixed_length is None else min(_GUESSES, signature.fixed_length // 4)


def _rows(signature: ModelSignature, count: int) -> int:
    """Texts that are sampled at once, so that their logits stay within bounds."""
    assert signature.tokens is not None and signature.tokens.bound
    width = signature.fixed_length or _CONTEXT + _GUESSES
    most = max(1, min(_ROWS, LOGITS_BYTES // (4 * width * signature.tokens.bound)))
    # in turns of equal size: a last turn of few rows would take as many steps as a full one
    turns = -(-count // most)
    return signature.fixed_batch or -(-count // turns)


def _accepted(drawn: np.ndarray, guess: list[int]) -> list[int]:
    """The drawn tokens up to the first that is no guess: those after it were drawn in a wrong context."""
    right = next((place for place, token in enumerate(guess) if drawn[place] != token), len(guess))
    return [int(token) for token in drawn[: right + 1]]

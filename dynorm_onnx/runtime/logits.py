"""Which output of a model holds logits over a vocabulary, what its labels are, and whether it is causal.

Signatures only: everything is told from the names and shapes of one batch and from one more run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynorm_onnx.runtime.arrays import Feeds, is_float, is_tensor_of_numbers
from dynorm_onnx.runtime.pieces import run_batches

_TOKEN_NAMES = ("input_ids", "decoder_input_ids", "tokens", "ids")
_NOT_TOKENS = ("mask", "position", "type", "segment", "past", "length")
_MASK_NAME = "attention_mask"
_FEW_SAMPLES, _FEW_TOKENS, _FEW_ROWS = 2, 32, 64  # that show whether a model is causal


@dataclasses.dataclass(frozen=True)
class LogitsOutput:
    """An output of logits [..., V], and the input that its rows belong to."""

    name: str
    tokens: str  # the input of token ids, [B, T]
    aligned: bool  # whether the rows are the positions of `tokens`, so that there are next tokens


def token_input(feeds: Mapping[str, np.ndarray]) -> str | None:
    """The input of token ids: one named so, else the only integer matrix that is no mask or position."""
    tensors = {name: array for name, array in feeds.items() if is_tensor_of_numbers(array)}
    matrices = [name for name, array in tensors.items() if array.ndim == 2 and np.issubdtype(array.dtype, np.integer)]
    for name in _TOKEN_NAMES:
        if name in matrices:
            return name
    others = [name for name in matrices if not any(word in name.lower() for word in _NOT_TOKENS)]
    return others[0] if len(others) == 1 else None


def logits_output(
    feeds: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], vocabulary: int | None = None
) -> LogitsOutput | None:
    """The output of logits over the vocabulary that the model's token input is drawn from, if there is one.

    An output is that if it is a float tensor of rank 2 or more, its last dimension V has room for every
    token id of the batch, and either its name contains "logits" or V is the `vocabulary` (rows of the
    embedding that the token input indexes), where the caller knows it. A classifier's "logits" fail the
    test of room; hidden states fail that of name and vocabulary.
    """
    tokens = token_input(feeds)
    if tokens is None or not feeds[tokens].size:
        return None
    least = int(feeds[tokens].max()) + 1
    for name, array in outputs.items():
        fits = is_float(array) and array.ndim >= 2 and array.shape[-1] >= least
        if fits and ("logits" in name.lower() or array.shape[-1] == vocabulary):
            aligned = array.shape[:-1] == feeds[tokens].shape
            return LogitsOutput(name, tokens, aligned)
    return None


def kept_positions(feeds: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Bool [B, T], False where `attention_mask` says padding; None without a mask of the tokens' shape.

    A mask that also covers P past positions, [B, P + T], is cut to its end.
    """
    mask, tokens = feeds.get(_MASK_NAME), token_input(feeds)
    if mask is None or mask.ndim != 2:
        return None
    if tokens is None:
        return mask != 0
    rows, length = feeds[tokens].shape
    if mask.shape[0] != rows or mask.shape[1] < length:
        return None
    return mask[:, mask.shape[1] - length :] != 0


def is_causal(session: Any, feeds: Feeds, logits: LogitsOutput) -> bool:
    """Whether a token's logits ignore the tokens after it, found by changing the last token of each row.

    Only then are the logits a prediction of the next token; those of a masked language model see it.
    One run of the model, and one more.
    """
    probe = CausalProbe.of(session, feeds)
    return probe is not None and probe.is_passed(list(run_batches(session, probe.batches, [logits.name])), logits)


@dataclasses.dataclass(frozen=True)
class CausalProbe:
    """Two batches that differ in the last token of each row; causal logits of the tokens before it are alike."""

    batches: tuple[Feeds, Feeds]
    earlier: np.ndarray  # bool [B, T]: the tokens before the changed one, padding left out

    @classmethod
    def of(cls, session: Any, feeds: Feeds) -> CausalProbe | None:
        """Made of one batch for a session; None where rows have no token before their last."""
        name = token_input(feeds)
        if name is None:
            return None
        feeds = _corner(session, feeds, name)
        tokens = feeds[name]
        kept = _kept(feeds, tokens)
        last = tokens.shape[1] - 1 - np.argmax(kept[:, ::-1], axis=1)
        rows = np.arange(len(tokens))
        changed = tokens.copy()
        changed[rows, last] = np.where(tokens[rows, last] == 0, 1, 0)
        earlier = kept & (np.arange(tokens.shape[1]) < last[:, None])
        return cls((feeds, {**feeds, name: changed}), earlier) if earlier.any() else None

    def is_passed(self, outputs: Sequence[Feeds], logits: LogitsOutput) -> bool:
        """Whether logits in the outputs of a model for the two batches say that it is causal."""
        if not logits.aligned:
            return False
        chosen = tuple(axis[:_FEW_ROWS] for axis in np.nonzero(self.earlier))
        before, after = (made[logits.name][chosen].astype(np.float64) for made in outputs)
        # A bidirectional model answers by far more; what is allowed here is the rounding of half precision.
        return bool(np.linalg.norm(after - before) <= 1e-3 * np.linalg.norm(before))


def _kept(feeds: Feeds, tokens: np.ndarray) -> np.ndarray:
    mask = kept_positions(feeds)
    return np.ones(tokens.shape, bool) if mask is None else mask


def _corner(session: Any, feeds: Feeds, tokens: str) -> Feeds:
    """The first tokens of the first samples, where all that the model takes belongs to tokens, their number is free,
    and they are not padding."""
    ports, shape = session.get_inputs(), feeds[tokens].shape
    if any(isinstance(size, int) for port in ports for size in port.shape):
        return feeds
    if any(not isinstance(array, np.ndarray) or array.shape != shape for array in feeds.values()):
        return feeds
    corner = {name: array[:_FEW_SAMPLES, :_FEW_TOKENS] for name, array in feeds.items()}
    return corner if _kept(corner, corner[tokens]).sum(1).max() > 1 else feeds

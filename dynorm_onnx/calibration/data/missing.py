"""The inputs that nobody gives: masks, positions, empty caches, lengths and flags, to suit the tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dynorm_onnx.calibration.data.fitting import fitted
from dynorm_onnx.calibration.data.roles import Role
from dynorm_onnx.calibration.data.signature import Dim, InputSpec, ModelSignature
from dynorm_onnx.errors import DataError
from dynorm_onnx.runtime.arrays import Feeds, is_float

_MASKED = -1e4  # added to attention scores: far below any of them, and finite in float16


@dataclasses.dataclass(frozen=True)
class _Step:
    """What the inputs to be made depend on."""

    batch: int
    length: int  # tokens of this step
    encoder_length: int
    tokens: np.ndarray | None  # the token ids, integers [batch, length]
    past: np.ndarray  # bool [batch, tokens in the cache]: whether there is one
    present: np.ndarray  # bool [batch, length]: whether there is a token, not padding
    causal: bool  # what a mask of rank 4 has to say
    sizes: Mapping[str, int]  # of the free axes of what was given, by their names
    rng: np.random.Generator

    @property
    def seen(self) -> np.ndarray:
        """bool [batch, past + length]."""
        return np.concatenate([self.past, self.present], axis=1)


def complete(feeds: Feeds, signature: ModelSignature, rng: np.random.Generator) -> Feeds:
    """One batch with an array for every input of the model.

    Arrays given are checked and cast as `fitted` says. Of the rest, masks become ones, positions
    count the tokens that the mask shows, token types and states are zeros, keys and values empty, lengths
    and flags what they must be, decoder tokens the tokens, and an encoder's states standard normal. What nobody reads
    is zeros, whether or not the model says its shape.

    Raises DataError for a name that the model does not have, an array that does not fit, and an input
    that is missing and cannot be made.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    for name in feeds:
        if name not in specs:
            raise DataError(f"the data has {name!r}, but the model's inputs are {', '.join(specs)}")
    given = {name: fitted(specs[name], array) for name, array in feeds.items()}
    step = _step(given, signature, rng)
    return {name: given[name] if name in given else _made(spec, step) for name, spec in specs.items()}


def _made(spec: InputSpec, step: _Step) -> np.ndarray:
    if spec.role == "unread":
        return _anything(spec, step)
    maker = _MAKERS.get(spec.role)
    if maker is None or spec.shape is None:
        raise DataError(f"the data has no {spec.name!r}, which the model takes as {spec.describe()}")
    try:
        return fitted(spec, maker(spec, step).astype(spec.dtype))
    except DataError as error:
        raise DataError(f"the data has no {spec.name!r}, and none could be made: {error}") from error


def _anything(spec: InputSpec, step: _Step) -> Any:
    if spec.is_sequence:
        return []
    sizes = [_size(dim, step.sizes.get(str(dim), 1)) for dim in spec.shape or ()]
    if spec.batch_axis is not None and not isinstance((spec.shape or ())[spec.batch_axis], int):
        sizes[spec.batch_axis] = step.batch
    return np.full(sizes, "", object) if spec.holds_strings else np.zeros(sizes, spec.dtype)


def _sizes(given: Feeds, signature: ModelSignature) -> dict[str, int]:
    """The sizes of the free axes of what was given, by their names."""
    tensors = [spec for spec in signature.inputs if spec.name in given and not spec.is_sequence]
    return {
        dim: size
        for spec in tensors
        for dim, size in zip(spec.shape or (), np.shape(given[spec.name]), strict=False)
        if isinstance(dim, str)
    }


def _step(given: Feeds, signature: ModelSignature, rng: np.random.Generator) -> _Step:
    tokens = next((given[spec.name] for spec in signature.with_role("token_ids") if spec.name in given), None)
    batch, length = _batch_and_length(given, signature, tokens)
    past = np.ones((batch, _past_length(given, signature)), bool)
    present = np.ones((batch, length), bool)
    for spec in signature.with_role("attention_mask"):
        if spec.name in given and given[spec.name].ndim == 2 and "encoder" not in spec.name:
            columns = given[spec.name].astype(bool)
            past, present = columns[:, : columns.shape[1] - length], columns[:, columns.shape[1] - length :]
    states = [given[spec.name] for spec in signature.with_role("encoder_states") if spec.name in given]
    return _Step(
        batch=batch,
        length=length,
        encoder_length=states[0].shape[1] if states else length,
        tokens=tokens,
        past=past,
        present=present,
        causal=signature.logits is not None,
        sizes=_sizes(given, signature),
        rng=rng,
    )


def _batch_and_length(given: Feeds, signature: ModelSignature, tokens: np.ndarray | None) -> tuple[int, int]:
    """From the tokens; without tokens, from the first array given that has both axes."""
    if tokens is not None:
        return (tokens.shape[0] if tokens.ndim > 1 else 1), tokens.shape[-1]
    for spec in signature.inputs:
        if spec.name in given and spec.batch_axis == 0 and given[spec.name].ndim > 1:
            return given[spec.name].shape[0], given[spec.name].shape[1]
    return 1, 1


def _past_length(given: Feeds, signature: ModelSignature) -> int:
    for spec in signature.with_role("past"):
        axis = growing_axis(spec)
        if spec.name in given and axis is not None and "encoder" not in spec.name.replace("decoder", ""):
            return given[spec.name].shape[axis]
    return 0


def growing_axis(spec: InputSpec) -> int | None:
    """The axis of a cache input that counts the tokens of the past: the free one that is not the batch.

    None for a state of fixed size. Raises DataError where more than one axis is free.
    """
    free = [axis for axis, dim in enumerate(spec.shape or ()) if not isinstance(dim, int) and axis != spec.batch_axis]
    if len(free) > 1:
        raise DataError(f"the data has no {spec.name!r}, and {spec.describe()} leaves its size open")
    return free[0] if free else None


def _past(spec: InputSpec, step: _Step) -> np.ndarray:
    growing_axis(spec)
    sizes = [dim if isinstance(dim, int) else 0 for dim in spec.shape or ()]
    axis = spec.batch_axis
    if axis is not None and not isinstance((spec.shape or ())[axis], int):
        sizes[axis] = step.batch
    return np.zeros(sizes)


def _attention_mask(spec: InputSpec, step: _Step) -> np.ndarray:
    shape = spec.shape or ()
    if "encoder" in spec.name.replace("decoder", ""):
        return np.ones((step.batch, step.encoder_length))
    if len(shape) > 2:
        return _score_mask(spec, step)
    if step.tokens is None and len(shape) == 2 and str(shape[1]) in step.sizes:
        return np.ones((step.batch, step.sizes[str(shape[1])]))
    return _at_the_end(step.seen if len(shape) == 2 else step.seen[0], shape)


def _score_mask(spec: InputSpec, step: _Step) -> np.ndarray:
    """[batch, (1,) length or 1, past + length]: true, or 0 for floats, where a token may look."""
    shape = spec.shape or ()
    allowed = _at_the_end(step.seen, shape)[:, None, :]
    if step.causal and shape[-2] != 1:
        allowed = allowed & np.tri(step.length, allowed.shape[-1], allowed.shape[-1] - step.length, dtype=bool)
    elif shape[-2] != 1:
        allowed = allowed.repeat(step.length, axis=1)
    if len(shape) == 4:
        allowed = allowed[:, None].repeat(_size(shape[1], 1), axis=1)
    return np.where(allowed, 0.0, _MASKED) if is_float(np.empty(0, spec.dtype)) else allowed


def _at_the_end(seen: np.ndarray, shape: tuple[Dim, ...]) -> np.ndarray:
    """As wide as the mask must be: what a cache of fixed size has room for stands in front, empty."""
    room = shape[-1] - seen.shape[-1] if isinstance(shape[-1], int) else 0
    return np.pad(seen, [(0, 0)] * (seen.ndim - 1) + [(max(room, 0), 0)])


def _position_ids(spec: InputSpec, step: _Step) -> np.ndarray:
    counted = np.maximum(step.seen.cumsum(1) - 1, 0)[:, step.past.shape[1] :]
    rank = len(spec.shape or ())
    if rank == 1:
        return counted[0]
    # rank 3: the sections of a rotary embedding for images, all alike for text
    return counted if rank == 2 else np.broadcast_to(counted, (_size((spec.shape or ())[0], 3), *counted.shape))


def _size(dim: Dim, free: int) -> int:
    return dim if isinstance(dim, int) else free


def _decoder_tokens(spec: InputSpec, step: _Step) -> np.ndarray:
    if step.tokens is None:
        raise DataError(f"the data has no {spec.name!r}, which the model takes as {spec.describe()}")
    return step.tokens % (spec.bound or np.iinfo(spec.dtype).max)


def _encoder_states(spec: InputSpec, step: _Step) -> np.ndarray:
    shape = spec.shape or ()
    sizes = [_size(dim, free) for dim, free in zip(shape, (step.batch, step.encoder_length), strict=False)]
    if len(shape) != 3 or not isinstance(shape[2], int):
        raise DataError(f"the data has no {spec.name!r}, and {spec.describe()} leaves its size open")
    return step.rng.standard_normal((*sizes, shape[2]))


def _per_model(value: Callable[[_Step], int]) -> Callable[[InputSpec, _Step], np.ndarray]:
    """A maker of a single number, in as many axes as the input has."""
    return lambda spec, step: np.full([1] * len(spec.shape or ()), value(step))


def _sequence_lengths(spec: InputSpec, step: _Step) -> np.ndarray:
    return (step.seen.sum(1) - 1).reshape([-1] + [1] * (len(spec.shape or ()) - 1))


_MAKERS: dict[Role, Callable[[InputSpec, _Step], np.ndarray]] = {
    "attention_mask": _attention_mask,
    "position_ids": _position_ids,
    "token_type_ids": lambda spec, step: np.zeros((step.batch, step.length)[-len(spec.shape or ()) :]),
    "past": _past,
    "cache_flag": _per_model(lambda step: step.past.shape[1] > 0),
    "cache_position": lambda spec, step: step.past.shape[1] + np.arange(step.length),
    "sequence_lengths": _sequence_lengths,
    "total_length": _per_model(lambda step: step.past.shape[1] + step.length),
    "past_length": _per_model(lambda step: step.past.shape[1]),
    "logits_to_keep": _per_model(lambda step: 0),
    "decoder_token_ids": _decoder_tokens,
    "encoder_states": _encoder_states,
}

"""Requests and responses of the Open Inference Protocol (KServe's version 2) over HTTP, as arrays.

A body is JSON. With Triton's extension for binary tensor data, arrays follow the JSON as raw little-endian bytes, and
the header Inference-Header-Content-Length says how long the JSON is. Fields as the protocol and the extension name
them; any client of theirs, tritonclient among them, is understood.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dynorm_onnx.errors import DataError
from dynorm_onnx.serving.tensors import DYNAMIC, ServedSignature, ServedTensor

HEADER_LENGTH = "Inference-Header-Content-Length"
VERSION = "1"  # of a model: there is one of each

_BINARY_SIZE = "binary_data_size"
_SHOWN = 200  # letters of what a client sent
_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    **{f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits}") for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}


@dataclasses.dataclass(frozen=True)
class InferenceRequest:
    """What a client asks for."""

    id: str | None
    feeds: dict[str, np.ndarray]  # by input name, of the model's types
    outputs: dict[str, bool]  # names, in the order to be answered; whether each is wanted as binary data


def is_spoken(tensor: ServedTensor) -> bool:
    """Whether arrays of the tensor's type can be exchanged: numbers that NumPy has, and booleans."""
    return datatype(tensor) in _DTYPES


def datatype(tensor: ServedTensor) -> str:
    """The protocol's name of a tensor's type."""
    return tensor.data_type.removeprefix("TYPE_")


def metadata(name: str, signature: ServedSignature) -> dict[str, Any]:
    """What GET v2/models/NAME answers: the model's inputs and outputs, -1 where a size is free."""
    described = {
        kind: [{"name": each.name, "datatype": datatype(each), "shape": list(each.shape)} for each in tensors]
        for kind, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }
    return {"name": name, "versions": [VERSION], "platform": "onnxruntime_onnx", **described}


def read_request(body: bytes, header_length: str | None, signature: ServedSignature) -> InferenceRequest:
    """Read a request; `header_length` is the value of its header of that name.

    Raises DataError, naming the tensor, for what is no such request or does not fit the model.
    """
    end = len(body) if header_length is None else _length(header_length)
    if not 0 <= end <= len(body):
        raise DataError(f"{HEADER_LENGTH} is {_cut(repr(header_length))}, and the body has {len(body)} bytes")
    try:
        content = json.loads(body[:end])
        inputs = [(str(each["name"]), each, dict(each.get("parameters") or {})) for each in content["inputs"]]
        asked = [(str(each["name"]), each.get("parameters") or {}) for each in content.get("outputs") or ()]
        by_default = bool((content.get("parameters") or {}).get("binary_data_output", False))
        wanted = {name: bool(parameters.get("binary_data", by_default)) for name, parameters in asked}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"the body is no request of the Open Inference Protocol: {_cut(repr(error))}") from None
    feeds = _read_tensors(inputs, memoryview(body)[end:], {tensor.name: tensor for tensor in signature.inputs})
    known = [tensor.name for tensor in signature.outputs]
    for name in wanted:
        if name not in known:
            raise DataError(f"the model has no output {_cut(repr(name))}; it has {', '.join(known)}")
    identity = content.get("id")
    return InferenceRequest(
        None if identity is None else str(identity), feeds, wanted or dict.fromkeys(known, by_default)
    )


def check_samples(request: InferenceRequest, most: int) -> None:
    """Raises DataError where a request for a batched model has more samples than `most`, or not as many in each input.

    Joined with another request's, inputs of different lengths could seem to fit.
    """
    counts = {name: len(array) for name, array in request.feeds.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"the inputs have different numbers of samples: {counts}")
    if max(counts.values()) > most:
        raise DataError(f"{max(counts.values())} samples are more than max_batch_size, {most}")


def check_lengths(request: InferenceRequest, signature: ServedSignature, most: int, *, batched: bool) -> None:
    """Raises DataError, naming the input and its shape, where a free axis is longer than `most`; 0 is no bound.

    The first axis of a batched model is its samples, which check_samples() bounds.
    """
    for tensor in signature.inputs if most else ():
        shape = request.feeds[tensor.name].shape
        sizes = zip(shape, tensor.shape, strict=True)
        free = [size for axis, (size, given) in enumerate(sizes) if given == DYNAMIC and (axis or not batched)]
        if max(free, default=0) > most:
            raise DataError(
                f"input {tensor.name!r} has the shape {list(shape)}, and no axis may be longer than max_length, {most}"
            )


def described(feeds: Mapping[str, np.ndarray]) -> str:
    """The inputs of a request in few words, for errors that do not name them."""
    return ", ".join(f"{name!r} {array.dtype} {list(array.shape)}" for name, array in feeds.items())


def write_response(name: str, request: InferenceRequest, outputs: Mapping[str, np.ndarray]) -> tuple[bytes, int | None]:
    """(body, what its header of the JSON's length must say, None for a body of JSON alone) of a model's answer.

    Raises DataError where an output that was asked for in JSON is not finite: JSON has no such numbers.
    """
    described, parts = [], []
    for output, binary in request.outputs.items():
        array = np.atleast_1d(outputs[output])  # as Triton answers: it has no scalars
        kind = next(kind for kind, dtype in _DTYPES.items() if dtype == array.dtype)
        entry: dict[str, Any] = {"name": output, "datatype": kind, "shape": list(array.shape)}
        if binary:
            parts.append(np.ascontiguousarray(array).tobytes())
            entry["parameters"] = {_BINARY_SIZE: len(parts[-1])}
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"the output {output!r} is not finite, which JSON cannot say: ask for binary_data")
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    identity = {} if request.id is None else {"id": request.id}
    head = json.dumps({"model_name": name, "model_version": VERSION, **identity, "outputs": described}).encode()
    return b"".join([head, *parts]), len(head) if parts else None


def _read_tensors(
    inputs: list[tuple[str, dict[str, Any], dict[str, Any]]], binary: memoryview, known: Mapping[str, ServedTensor]
) -> dict[str, np.ndarray]:
    feeds: dict[str, np.ndarray] = {}
    for name, entry, parameters in inputs:
        if name not in known:
            raise DataError(f"the model has no input {_cut(repr(name))}; it has {', '.join(known)}")
        if name in feeds:
            raise DataError(f"the input {name!r} is given twice")
        size = parameters.get(_BINARY_SIZE)
        raw = None
        if size is not None:
            if not _is_size(size) or size > len(binary):
                raise DataError(
                    f"input {name!r}: {_BINARY_SIZE} is {_cut(repr(size))}, and {len(binary)} bytes are left"
                )
            raw, binary = binary[:size], binary[size:]
        feeds[name] = _array(known[name], entry, raw)
    if binary:
        raise DataError(f"{len(binary)} bytes behind the JSON are of no input's {_BINARY_SIZE}")
    for name in known:
        if name not in feeds:
            raise DataError(f"the request lacks the input {name!r}")
    return {name: feeds[name] for name in known}


def _array(tensor: ServedTensor, entry: dict[str, Any], raw: memoryview | None) -> np.ndarray:
    kind, shape = entry.get("datatype"), entry.get("shape")
    if kind != datatype(tensor):
        raise DataError(f"input {tensor.name!r} is {_cut(str(kind))}, and the model takes {datatype(tensor)}")
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise DataError(f"input {tensor.name!r}: {_cut(repr(shape))} is no shape")
    if tensor.shape == () and shape == [1]:  # as clients send it that have no scalars
        shape = []
    if len(shape) != len(tensor.shape) or any(
        wanted not in (size, DYNAMIC) for size, wanted in zip(shape, tensor.shape, strict=True)
    ):
        raise DataError(
            f"input {tensor.name!r} has the shape {_cut(repr(shape))}, and the model takes {list(tensor.shape)}"
        )
    try:
        dtype = _DTYPES[datatype(tensor)]
        array = np.frombuffer(raw, dtype) if raw is not None else _numbers(entry.get("data"), dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"input {tensor.name!r}: its data is no array of {kind}: {_cut(str(error))}") from None
    if array.size != math.prod(shape):
        raise DataError(f"input {tensor.name!r}: {array.size} values do not make the shape {shape}")
    return array.reshape(shape)  # the protocol's data may be nested or flat


def _numbers(data: Any, dtype: np.dtype) -> np.ndarray:
    """The array of JSON's data. NumPy by itself also reads text and null as numbers, and cuts what follows the point.

    Raises ValueError, TypeError or OverflowError for what is no array of such numbers.
    """
    if not isinstance(data, list):
        raise TypeError(f"{_cut(repr(data))} is no list")
    fitting = {"b": (bool,), "f": (int, float)}.get(dtype.kind, (int,))
    for each in _leaves(data):
        if type(each) not in fitting:  # a bool is an int as well
            raise TypeError(f"it holds {_cut(repr(each))}")
    return np.array(data, dtype)


def _leaves(data: list[Any]) -> Iterator[Any]:
    rows = [data]
    while rows:
        for each in rows.pop():
            if isinstance(each, list):
                rows.append(each)
            else:
                yield each


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _length(header: str) -> int:
    """The number of a header; -1 for what is none, or has more digits than any length."""
    return int(header) if header.isascii() and header.isdecimal() and len(header) < 20 else -1


def _cut(text: str) -> str:
    """For an error: what came from a client may have any length."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

"""Weights left where they are: in the model's own file, which is read and written without holding them all.

A file that carries its weights would be in memory three times while protobuf parses it. Here it is read without the
data of large initializers, which become external tensors that lie in the file itself; and it is written by putting
the data, tensor by tensor, into the message of a model without.
"""

from __future__ import annotations

import mmap
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO, NamedTuple

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from dynorm_onnx.graph.edit.emit import set_tensor

LARGE = 1 << 16
"""Bytes of data from which a tensor's are left in the file."""

_VARINT, _LENGTH_DELIMITED = 0, 2  # wire types of protobuf
_FIXED = {1: 8, 5: 4}  # bytes of the fixed ones
_GRAPH, _INITIALIZER = 7, 5  # field numbers of ModelProto and GraphProto
_RAW_DATA = 9  # of TensorProto
_PLACE = "dynorm.tensor"  # the location that stands for data to come

Buffer = bytes | mmap.mmap


class _Field(NamedTuple):
    """One field of a message: where its key, its content and the next field begin."""

    number: int
    wire: int
    start: int
    content: int
    end: int


def read_without_data(path: pathlib.Path) -> onnx.ModelProto:
    """The model in a file, its large initializers as external data in that file.

    Raises DecodeError where the file is no protobuf message, OSError where it cannot be read.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        parts: list[bytes] = []
        for field in _fields(buffer, 0, len(buffer)):
            if field.number != _GRAPH or field.wire != _LENGTH_DELIMITED:
                parts.append(buffer[field.start : field.end])
                continue
            graph = b"".join(
                _without_data(buffer, inner, path.name)
                if inner.number == _INITIALIZER and inner.wire == _LENGTH_DELIMITED
                else buffer[inner.start : inner.end]
                for inner in _fields(buffer, field.content, field.end)
            )
            parts += (_key(_GRAPH, len(graph)), graph)
    return onnx.ModelProto.FromString(b"".join(parts))


def _without_data(buffer: Buffer, field: _Field, location: str) -> bytes:
    """An initializer as a field of its graph; one of much raw data as external data at its place in the file."""
    raw = next((f for f in _fields(buffer, field.content, field.end) if f.number == _RAW_DATA), None)
    if raw is None or raw.end - raw.content < LARGE:
        return buffer[field.start : field.end]
    tensor = onnx.TensorProto.FromString(buffer[field.content : raw.start] + buffer[raw.end : field.end])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", raw.content), ("length", raw.end - raw.content)):
        tensor.external_data.add(key=key, value=str(value))
    content = tensor.SerializeToString()
    return _key(_INITIALIZER, len(content)) + content


def write_with_data(model: ir.Model, file: IO[bytes]) -> None:
    """Write a model with all its initializers' data to a file, one tensor's at a time in memory."""
    tensors: dict[str, ir.TensorProtocol] = {}
    copy = model.clone()
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= LARGE and tensor.dtype != ir.DataType.STRING:
            tensors[f"{_PLACE}.{len(tensors)}"] = tensor
            set_tensor(value, ir.ExternalTensor(
                f"{_PLACE}.{len(tensors) - 1}", 0, tensor.nbytes, tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()), name=str(value.name), base_dir="",
            ))  # fmt: skip
    content = ir.to_proto(copy).SerializeToString()
    (graph,) = (field for field in _fields(content, 0, len(content)) if field.number == _GRAPH)
    body = list(_graph_with_data(content, graph, tensors))
    file.write(content[: graph.start])
    file.write(_key(_GRAPH, sum(len(part) if isinstance(part, bytes) else part.nbytes for part in body)))
    for part in body:
        if isinstance(part, bytes):
            file.write(part)
        elif isinstance(part, ir.ExternalTensor):
            part.tofile(file)  # from file to file
        else:
            file.write(part.tobytes())
    file.write(content[graph.end :])


def _graph_with_data(
    content: bytes, graph: _Field, tensors: Mapping[str, ir.TensorProtocol]
) -> Iterator[bytes | ir.TensorProtocol]:
    """The fields of the graph, the data that belongs between them as tensors."""
    for field in _fields(content, graph.content, graph.end):
        if field.number != _INITIALIZER:
            yield content[field.start : field.end]
            continue
        proto = onnx.TensorProto.FromString(content[field.content : field.end])
        place = next((entry.value for entry in proto.external_data if entry.key == "location"), "")
        tensor = tensors.get(place)
        if tensor is None:
            yield content[field.start : field.end]
            continue
        proto.ClearField("external_data")
        proto.ClearField("data_location")
        rest, key = proto.SerializeToString(), _key(_RAW_DATA, tensor.nbytes)
        yield _key(_INITIALIZER, len(rest) + len(key) + tensor.nbytes) + rest + key
        yield tensor


def _fields(buffer: Buffer, start: int, end: int) -> Iterator[_Field]:
    """The fields of the message that lies there. Raises DecodeError where it does not end where it should."""
    while start < end:
        key, content = _varint(buffer, start, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            _, after = _varint(buffer, content, end)
        elif wire == _LENGTH_DELIMITED:
            length, content = _varint(buffer, content, end)
            after = content + length
        elif wire in _FIXED:
            after = content + _FIXED[wire]
        else:
            raise DecodeError(f"byte {start}: protobuf has no wire type {wire}")
        if after > end or number == 0:
            raise DecodeError(f"byte {start}: a field of a message is cut short")
        yield _Field(number, wire, start, content, after)
        start = after


def _varint(buffer: Buffer, start: int, end: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    value, shift = 0, 0
    for place in range(start, min(end, start + 10)):
        byte = buffer[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place + 1
        shift += 7
    raise DecodeError(f"byte {start}: a number is cut short")


def _key(number: int, length: int) -> bytes:
    """What stands before the content of a length-delimited field."""
    return _as_varint(number << 3 | _LENGTH_DELIMITED) + _as_varint(length)


def _as_varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])

"""Bytes to an HTTP server, and what it says: on a socket, so that anything can be sent and cut off anywhere."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tests.serving.hammer.tally import Fault

PATIENCE_S = 90.0  # for an end of any kind
HEADER_LENGTH = "Inference-Header-Content-Length"


class Said(NamedTuple):
    """A response; status 0 where the connection was closed without one."""

    status: int
    headers: Mapping[str, str]
    body: bytes


CLOSED_WITHOUT = Said(0, {}, b"")


def head(path: str, length: int | None, headers: Sequence[tuple[str, str]] = (), method: str = "POST") -> bytes:
    """The lines before a body."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers)]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@contextlib.contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    """A connection, closed at the end."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), PATIENCE_S) as made:
        yield made


def slam(connection: socket.socket) -> None:
    """Close with a reset: what is on its way is thrown away at both ends."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def exchange(address: str, *parts: bytes) -> Said:
    """Send, and read one response. Raises Fault where neither a response nor an end comes."""
    try:
        with connected(address) as connection:
            with contextlib.suppress(
                BrokenPipeError, ConnectionResetError
            ):  # it may have answered, and closed, before the end
                for part in parts:
                    connection.sendall(part)
            return read(connection)
    except TimeoutError:
        raise Fault(f"neither an answer nor an end within {PATIENCE_S:.0f} s") from None


def read(connection: socket.socket) -> Said:
    """One response, to its end."""
    got = b""
    try:
        while b"\r\n\r\n" not in got:
            more = connection.recv(1 << 16)
            if not more:
                return CLOSED_WITHOUT if not got else _broken(got)
            got += more
        first, _, body = got.partition(b"\r\n\r\n")
        status, *lines = first.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        chunks = [body]
        left = int(headers.get("content-length", 0)) - len(body)
        while left > 0:
            chunks.append(connection.recv(1 << 16))
            if not chunks[-1]:
                return _broken(got)
            left -= len(chunks[-1])
    except ConnectionResetError:
        return CLOSED_WITHOUT
    return Said(int(status.split()[1]), headers, b"".join(chunks))


def _broken(got: bytes) -> Said:
    raise Fault(f"a response that breaks off: {got[:80]!r}")


def error_of(said: Said) -> str | None:
    """The words of an error in the protocol's own form; None for what is none."""
    with contextlib.suppress(ValueError):
        content = json.loads(said.body)
        if isinstance(content, dict) and isinstance(content.get("error"), str):
            return content["error"]
    return None


def tensor(**changes: Any) -> dict[str, Any]:
    """An input in JSON: four tokens, but for what is changed; None takes a field away."""
    entry = {"name": "input_ids", "datatype": "INT64", "shape": [1, 4], "data": [65, 66, 67, 68]} | changes
    return {name: value for name, value in entry.items() if value is not None}


def body(*inputs: Any, **fields: Any) -> bytes:
    """A request in JSON."""
    return json.dumps({"inputs": list(inputs), **fields}).encode()

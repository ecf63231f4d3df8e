"""Connections that end too early, and bodies that are too large."""

from __future__ import annotations

import contextlib
import gzip
import time

import numpy as np

from tests.serving.hammer.exchange import HEADER_LENGTH, body, connected, exchange, head, read, slam, tensor
from tests.serving.hammer.http_good import Send, binary
from tests.serving.hammer.http_malformed import refused
from tests.serving.hammer.known import KnownAnswers
from tests.serving.hammer.tally import CLOSED, CUT

MIB = 1 << 20
PART = 4 * MIB


def cut_kinds(address: str, path: str, known: KnownAnswers) -> dict[str, Send]:
    """By name: none of them waits for an answer to its end."""

    def whole(rng: np.random.Generator) -> tuple[bytes, int]:
        """(bytes of a good request, where its body begins)."""
        sent, headers = binary(known.inputs[known.next()])
        first = head(path, len(sent), headers)
        return first + sent, len(first)

    def in_the_head(rng: np.random.Generator) -> str:
        sent, start = whole(rng)
        return _cut(address, sent[: int(rng.integers(1, start))], rng)

    def in_the_body(rng: np.random.Generator) -> str:
        sent, start = whole(rng)
        return _cut(address, sent[: int(rng.integers(start, len(sent)))], rng)

    def before_the_answer(rng: np.random.Generator) -> str:
        return _cut(address, whole(rng)[0], rng)

    def in_the_answer(rng: np.random.Generator) -> str:
        with connected(address) as connection:
            connection.sendall(whole(rng)[0])
            with contextlib.suppress(ConnectionResetError):
                connection.recv(int(rng.integers(1, 4000)))
            slam(connection)
        return CUT

    def slowly(rng: np.random.Generator) -> str:
        sent, _ = whole(rng)
        with connected(address) as connection:
            for start in range(0, len(sent) // 2, 64):
                connection.sendall(sent[start : start + 64])
                time.sleep(0.05)
        return CUT

    def half_closed(rng: np.random.Generator) -> str:
        """No more will be sent, which the server may take for an end, or answer."""
        with connected(address) as connection:
            connection.sendall(whole(rng)[0])
            connection.shutdown(1)
            said = read(connection)
        return f"{CUT}: {said.status}" if said.status else CLOSED

    return {
        "cut HTTP in the head": in_the_head,
        "cut HTTP in the body": in_the_body,
        "cut HTTP before the answer": before_the_answer,
        "cut HTTP in the answer": in_the_answer,
        "cut HTTP slowly": slowly,
        "cut HTTP half closed": half_closed,
    }


def large_kinds(address: str, path: str, longest: int, mebibytes: int) -> dict[str, Send]:
    """By name; `longest` is the server's --max-length, `mebibytes` the size of the largest bodies."""
    tokens = mebibytes * MIB // 8

    def too_long(rng: np.random.Generator) -> str:
        sent, headers = binary(np.full((1, longest + int(rng.integers(1, 4 * longest))), 65))
        return refused(exchange(address, head(path, len(sent), headers), sent))

    def vast(rng: np.random.Generator) -> str:
        sent, headers = binary(np.full((1, tokens), 65))
        return refused(exchange(address, head(path, len(sent), headers), sent))

    def vast_and_cut(rng: np.random.Generator) -> str:
        sent, headers = binary(np.full((1, tokens), 65))
        with connected(address) as connection:
            connection.sendall(head(path, len(sent), headers))
            connection.sendall(memoryview(sent)[: int(rng.integers(len(sent)))])
            slam(connection)
        return CUT

    def vast_json(rng: np.random.Generator) -> str:
        numbers = mebibytes * MIB // 20  # takes several times its length while it is read
        sent = b'{"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, %d], "data": [%s]}]}'
        sent %= (numbers, b",".join([b"65"] * numbers))
        return refused(exchange(address, head(path, len(sent)), sent))

    def bomb(rng: np.random.Generator) -> str:
        """Small on the wire, large when it is unpacked.

        It is JSON, and the model refuses it: of what is not JSON Triton 2.51 keeps the unpacked body for ever.
        """
        return refused(exchange(address, head(path, len(packed), [("Content-Encoding", "gzip")]), packed))

    def vast_claim(rng: np.random.Generator) -> str:
        """A length that is never sent."""
        with connected(address) as connection:
            connection.sendall(head(path, 1 << 40, [(HEADER_LENGTH, "100")]) + bytes(PART))
            slam(connection)
        return CUT

    packed = gzip.compress(body(tensor(data=[65, 66, 67, 2**40])) + b" " * (mebibytes * MIB), 6)
    return {
        "large HTTP too long": too_long,
        "large HTTP body": vast,
        "large HTTP body, cut": vast_and_cut,
        "large HTTP JSON": vast_json,
        "large HTTP gzip": bomb,
        "large HTTP length": vast_claim,
    }


def _cut(address: str, sent: bytes, rng: np.random.Generator) -> str:
    """Send so much and go, politely or not, at once or after a moment."""
    with connected(address) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(sent)
        if rng.random() < 0.5:
            time.sleep(rng.random() / 20)
        if rng.random() < 0.5:
            slam(connection)
    return CUT

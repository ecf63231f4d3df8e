"""Good requests over HTTP, in JSON and in binary, compressed and in chunks: each must come to its own answer."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable

import numpy as np

from tests.serving.hammer.exchange import HEADER_LENGTH, Said, body, exchange, head, tensor
from tests.serving.hammer.known import OUTPUT, KnownAnswers
from tests.serving.hammer.tally import ANSWERED, Fault

Send = Callable[[np.random.Generator], str]
"""Sends one request to its end; returns what became of it. Raises Fault where it ends as it must not."""


def good_kinds(address: str, path: str, known: KnownAnswers, *, compressed: bool) -> dict[str, Send]:
    """By name; `compressed`: the server reads bodies in gzip."""

    def in_json(rng: np.random.Generator) -> str:
        number = known.next()
        sent = _json(known.inputs[number])
        return _judged(known, number, exchange(address, head(path, len(sent)), sent))

    def in_binary(rng: np.random.Generator) -> str:
        number = known.next()
        sent, headers = binary(known.inputs[number])
        return _judged(known, number, exchange(address, head(path, len(sent), headers), sent))

    def in_pieces(rng: np.random.Generator) -> str:
        number = known.next()
        sent = _json(known.inputs[number])
        size = int(rng.integers(20, 200))
        pieces = [sent[start : start + size] for start in range(0, len(sent), size)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        return _judged(
            known,
            number,
            exchange(address, head(path, None, [("Transfer-Encoding", "chunked")]), chunks, b"0\r\n\r\n"),
        )

    def in_gzip(rng: np.random.Generator) -> str:
        number = known.next()
        sent = gzip.compress(_json(known.inputs[number]), 1)
        return _judged(known, number, exchange(address, head(path, len(sent), [("Content-Encoding", "gzip")]), sent))

    kinds = {"good HTTP JSON": in_json, "good HTTP binary": in_binary, "good HTTP chunked": in_pieces}
    return kinds | ({"good HTTP gzip": in_gzip} if compressed else {})


def binary(ids: np.ndarray, claimed: object = None) -> tuple[bytes, list[tuple[str, str]]]:
    """(body, headers) of a request in binary, whose size in the JSON is `claimed`, by default what it is."""
    raw = ids.astype(np.int64).tobytes()
    size = {"binary_data_size": len(raw) if claimed is None else claimed}
    described = tensor(shape=list(ids.shape), data=None, parameters=size)
    start = body(described, parameters={"binary_data_output": True})
    return start + raw, [(HEADER_LENGTH, str(len(start)))]


def _json(ids: np.ndarray) -> bytes:
    return body(tensor(shape=list(ids.shape), data=ids.ravel().tolist()))


def logits(said: Said) -> np.ndarray:
    """The output of a response. Raises Fault where it is none."""
    if said.status != 200:
        raise Fault(f"a good request was answered {said.status}: {said.body[:200]!r}")
    length = said.headers.get(HEADER_LENGTH.lower())
    content = json.loads(said.body[: int(length)] if length else said.body)
    (output,) = content["outputs"]
    assert output["name"] == OUTPUT
    flat = np.frombuffer(said.body[int(length) :], np.float32) if length else np.array(output["data"], np.float32)
    return flat.reshape(output["shape"])


def _judged(known: KnownAnswers, number: int, said: Said) -> str:
    known.check(number, logits(said))
    return ANSWERED

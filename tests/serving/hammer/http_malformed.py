"""Requests over HTTP that make no sense: each must come to an error of its own."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

import numpy as np

from tests.serving.hammer.exchange import HEADER_LENGTH, Said, body, error_of, exchange, head, tensor
from tests.serving.hammer.http_good import Send, binary, logits
from tests.serving.hammer.known import BATCHED, VOCABULARY, KnownAnswers
from tests.serving.hammer.tally import ANSWERED, CLOSED, REFUSED, Fault
from tests.tolerances import relative_error

FOUR = np.array([[65, 66, 67, 68]])
Headers = Sequence[tuple[str, str]]


def bodies() -> dict[str, bytes]:
    """JSON that is none, or no request, or one that does not fit the model."""
    given = {
        "bad JSON": b'{"inputs": [',
        "no object": b"[]",
        "no JSON": b"\xff\xfe\x00nonsense",
        "inputs a number": b'{"inputs": 3}',
        "no inputs": body(),
        "an input a number": body(3),
        "an unknown input": body(tensor(), tensor(name="other")),
        "only an unknown input": body(tensor(name="other")),
        "an input twice": body(tensor(), tensor()),
        "an unknown output": body(tensor(), outputs=[{"name": "other"}]),
        "dtype FP32": body(tensor(datatype="FP32")),
        "dtype nonsense": body(tensor(datatype="NONE")),
        "no dtype": body(tensor(datatype=None)),
        "rank 1": body(tensor(shape=[4])),
        "rank 3": body(tensor(shape=[1, 1, 4])),
        "no shape": body(tensor(shape=None)),
        "a shape of text": body(tensor(shape="1x4")),
        "a negative shape": body(tensor(shape=[1, -4])),
        "fewer values": body(tensor(shape=[1, 8])),
        "more values": body(tensor(shape=[1, 2])),
        "no values": body(tensor(data=None)),
        "no tokens": body(tensor(shape=[1, 0], data=[])),
        "no samples": body(tensor(shape=[0, 4], data=[])),
        "too many samples": body(tensor(shape=[9, 1], data=[65] * 9)),
        "an unknown region": body(
            tensor(data=None, parameters={"shared_memory_region": "x", "shared_memory_byte_size": 32})
        ),
    }
    ids = {
        "below the vocabulary": -VOCABULARY - 1,
        "beyond the vocabulary": VOCABULARY,
        "id 2**62": 2**62,
        "id 2**70": 2**70,
    }
    values = ids | {"text": "65", "null": None, "a fraction": 1.5, "a boolean": True, "an object": {}}
    return given | {f"value: {name}": body(tensor(data=[65, value, 67, 68])) for name, value in values.items()}


def binaries() -> dict[str, tuple[bytes, Headers]]:
    """Binary data whose sizes do not add up."""
    sizes = {"larger": 40, "smaller": 24, "odd": 31, "negative": -8, "vast": 2**40, "text": "32", "no number": 2**70}
    found: dict[str, tuple[bytes, Headers]] = {
        f"binary size {name}": binary(FOUR, size) for name, size in sizes.items()
    }
    good, headers = binary(FOUR)
    found |= {"binary cut": (good[:-8], headers), "binary and more": (good + bytes(16), headers)}
    lengths = {"far": 99_999, "negative": -1, "nonsense": "x", "zero": 0, "of digits": "9" * 5000}
    return found | {f"JSON length {name}": (good, [(HEADER_LENGTH, str(length))]) for name, length in lengths.items()}


def malformed_kinds(address: str, path: str, known: KnownAnswers) -> dict[str, Send]:
    """By name."""
    kinds = {f"HTTP {name}": _sending(address, path, sent, ()) for name, sent in bodies().items()}
    kinds |= {f"HTTP {name}": _sending(address, path, sent, headers) for name, (sent, headers) in binaries().items()}
    good = body(tensor())
    deep = b'{"inputs": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    kinds |= {
        "HTTP deep JSON": _sending(address, path, deep, ()),
        "HTTP bad gzip": _sending(address, path, b"nonsense", [("Content-Encoding", "gzip")]),
        "HTTP unknown encoding": _sending(address, path, good, [("Content-Encoding", "zstd")]),
        "HTTP unknown model": _sending(address, path.replace("/lm/", "/other/"), good, ()),
        "HTTP unknown version": _sending(address, path.replace("/infer", "/versions/7/infer"), good, ()),
        "HTTP wrong method": _sending(address, path, good, (), method="PUT"),
    }
    raw = {
        "HTTP no HTTP": b"\x16\x03\x01\x00\xff nonsense\r\n\r\n",
        "HTTP length negative": head(path, -5) + good,
        "HTTP length vast": head(path, 2**70) + good,
        "HTTP length too short": head(path, 10) + good,
        "HTTP two lengths": head(path, len(good), [("Content-Length", "3")]) + good,
        "HTTP bad chunks": head(path, None, [("Transfer-Encoding", "chunked")]) + b"zz\r\nnonsense\r\n\r\n",
    }
    kinds |= {name: _framed(address, sent) for name, sent in raw.items()}
    return kinds | _odd_kinds(address, path, known)


def refused(said: Said) -> str:
    """The outcome. Raises Fault where what was said is no error in the protocol's own form."""
    if said.status < 400 or error_of(said) is None:
        raise Fault(f"no error, but {said.status} {said.body[:200]!r}")
    return f"{REFUSED}: {said.status}"


def _sending(address: str, path: str, sent: bytes, headers: Headers, method: str = "POST") -> Send:
    return lambda rng: refused(exchange(address, head(path, len(sent), headers, method), sent))


def _framed(address: str, sent: bytes) -> Send:
    """What breaks the rules of HTTP itself may be answered in any form, or by an end."""

    def send(rng: np.random.Generator) -> str:
        said = exchange(address, sent)
        if said.status and said.status < 400:
            raise Fault(f"answered {said.status}")
        return f"{REFUSED}: {said.status}" if said.status else CLOSED

    return send


def _odd_kinds(address: str, path: str, known: KnownAnswers) -> dict[str, Send]:
    """What one server refuses and another understands: then the answer must be the right one."""
    good, packed = body(tensor()), gzip.compress(body(tensor()))
    # ONNX's Gather takes -1 for the last row, so this is a request like any other
    counted = np.where(np.arange(4) == 1, -1, FOUR)
    in_gzip = [("Content-Encoding", "gzip")]
    return {
        "odd HTTP id -1": _odd(
            address, path, body(tensor(data=counted.ravel().tolist())), (), known, counted % VOCABULARY
        ),
        "odd HTTP parameters a list": _odd(address, path, body(tensor(parameters=[1])), (), known, FOUR),
        "odd HTTP gzip cut": _odd(address, path, packed[:-4], in_gzip, known, FOUR),
        "odd HTTP vast header": _odd(address, path, good, [("X", "x" * 300_000)], known, FOUR),
        "odd HTTP after the JSON": _odd(address, path, good + b"]]", (), known, FOUR),
    }


def _odd(address: str, path: str, sent: bytes, headers: Headers, known: KnownAnswers, meant: np.ndarray) -> Send:
    wanted = known.answer(meant)

    def send(rng: np.random.Generator) -> str:
        said = exchange(address, head(path, len(sent), headers), sent)
        if said.status != 200:
            return refused(said) if said.status else CLOSED
        if relative_error(logits(said), wanted) > BATCHED:
            raise Fault("another answer than to what was meant")
        return ANSWERED

    return send

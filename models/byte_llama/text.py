"""The text that the byte-level Llama learns from: the source of Python's own standard library.

The split is by file, so that nothing in the held-out part was seen in training. Two simple models
of the same bytes give the scale on which a loss in nats per byte can be read.
"""

from __future__ import annotations

import sysconfig
import zlib
from pathlib import Path

import numpy as np

NOT_LIBRARY = {"test", "tests", "site-packages", "idlelib", "lib2to3", "pydoc_data", "encodings"}
HELD_OUT_PERCENT = 5
PIECE = 4096


def library_files() -> list[Path]:
    """The standard library's own modules, sorted, without tests and generated tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in root.rglob("*.py") if not NOT_LIBRARY.intersection(path.relative_to(root).parts))


def split_text() -> tuple[np.ndarray, np.ndarray]:
    """(training bytes, held-out bytes), uint8; a file goes to one side whole, by its name's CRC."""
    files = library_files()
    train, held_out = (
        np.frombuffer(b"".join(_content(path) for path in files if _is_held_out(path) is side), np.uint8)
        for side in (False, True)
    )
    return train, held_out


def held_out_sample(size: int) -> bytes:
    """`size` bytes of held-out text: pieces of PIECE bytes from all its files, in an order drawn once."""
    _, held_out = split_text()
    pieces = np.split(held_out, range(PIECE, len(held_out), PIECE))
    order = np.random.default_rng(0).permutation(len(pieces))
    return b"".join(pieces[i].tobytes() for i in order)[:size]


def _content(path: Path) -> bytes:
    return path.read_bytes() + b"\n"


def _is_held_out(path: Path) -> bool:
    return _crc(path) % 100 < HELD_OUT_PERCENT


def _crc(path: Path) -> int:
    return zlib.crc32(path.relative_to(sysconfig.get_paths()["stdlib"]).as_posix().encode())


def byte_entropy(train: np.ndarray, held_out: np.ndarray) -> float:
    """Cross entropy of held_out under train's byte frequencies, nats per byte."""
    counts = np.bincount(train, minlength=256) + 0.5
    return float(-np.log(counts / counts.sum())[held_out].mean())


def trigram_loss(train: np.ndarray, held_out: np.ndarray) -> float:
    """Cross entropy of held_out under an interpolated (Witten-Bell) trigram model, nats per byte."""
    unigram = (np.bincount(train, minlength=256) + 0.5) / (train.size + 128)
    probability = unigram[held_out[2:]]
    for order in (1, 2):
        _, pair = _contexts(train, order)
        size = 256**order
        seen = np.bincount(pair, minlength=size * 256).reshape(size, 256)
        total, kinds = seen.sum(1), (seen > 0).sum(1)
        held_context, held_pair = _contexts(held_out[2 - order :], order)
        n, t = total[held_context], kinds[held_context]
        estimate = (seen.reshape(-1)[held_pair] + t * probability) / np.maximum(n + t, 1)
        probability = np.where(n > 0, estimate, probability)
    return float(-np.log(probability).mean())


def _contexts(data: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """For each byte after the first `order`: the code of its context, and of context + byte."""
    wide = data.astype(np.int64)
    context = np.zeros(data.size - order, np.int64)
    for step in range(order):
        context = context * 256 + wide[step : step + context.size]
    return context, context * 256 + wide[order:]

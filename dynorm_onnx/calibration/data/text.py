"""Token ids of .txt and .jsonl files, by the model's own tokenizer."""

from __future__ import annotations

import codecs
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dynorm_onnx.calibration.data.windows import windows
from dynorm_onnx.errors import DataError, UsageError

# read of a file: so many bytes for each token wanted; a token of English or code has about four
_BYTES_PER_TOKEN = 16
# a large file is read in so many passages, spread evenly
_PASSAGES = 64
_CONTINUATION = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that no character begins with


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """Text to windows of token ids, each one within the special tokens that the model expects."""

    encode: Callable[[str], np.ndarray]  # without special tokens
    prefix: tuple[int, ...]  # special tokens in front, [CLS] or BOS
    suffix: tuple[int, ...]  # special tokens behind, [SEP]

    def windows(self, text: str, length: int) -> list[np.ndarray]:
        """The text's tokens in contiguous windows, int64, at most `length` each with the special tokens.

        Raises UsageError where `length` leaves no room between the special tokens.
        """
        room = length - len(self.prefix) - len(self.suffix)
        if room < 1:
            raise UsageError(
                f"--max-length {length} leaves no room: the tokenizer puts "
                f"{len(self.prefix) + len(self.suffix)} special tokens around each text"
            )
        return [
            np.concatenate([self.prefix, part, self.suffix]).astype(np.int64)
            for part in windows(self.encode(text), room)
        ]


def load_encoder(tokenizer: Path | None, folder: Path | None) -> TextEncoder:
    """The encoder of a tokenizer.json: the file given, else the one in `folder`.

    Raises UsageError where there is no such file or the [text] extra is not installed, and DataError
    where the file is no tokenizer.
    """
    path = tokenizer or (folder / "tokenizer.json" if folder is not None else None)
    if path is None or not os.path.isfile(path):
        where = f"{path} does not exist" if path is not None else "none was given"
        raise UsageError(f"text needs the model's tokenizer ({where}): name its tokenizer.json with --tokenizer")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UsageError("text needs the tokenizers package: pip install 'dynorm-onnx[text]'") from None
    try:
        loaded = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise DataError(f"{path} is not a tokenizer.json: {error}") from error
    loaded.no_truncation()
    loaded.no_padding()
    prefix, suffix = _special_tokens(loaded)
    return TextEncoder(
        encode=lambda text: np.array(loaded.encode(text, add_special_tokens=False).ids, np.int64),
        prefix=prefix,
        suffix=suffix,
    )


def _special_tokens(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and after a text."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    special = encoding.special_tokens_mask
    first = next((index for index, flag in enumerate(special) if not flag), len(special))
    last = next((index for index, flag in enumerate(reversed(special)) if not flag), 0)
    return tuple(encoding.ids[:first]), tuple(encoding.ids[len(special) - last :])


def read_txt(path: Path, encoder: TextEncoder, wanted: int, length: int) -> list[np.ndarray]:
    """Windows of one long text, in its order: `wanted` of them or more where the file has so many.

    Windows shorter than `length`, the last ones of passages, are dropped unless there are no others.

    Raises DataError for a file that is not UTF-8 or holds no text.
    """
    rows: list[np.ndarray] = []
    for passage in _passages(path, wanted, wanted * length * _BYTES_PER_TOKEN):
        rows += encoder.windows(passage, length)
    if not rows:
        raise DataError(f"{path} holds no text")
    return [row for row in rows if row.size == length] or rows


def _passages(path: Path, wanted: int, budget: int) -> Iterator[str]:
    """The file's text, or of a file of more than `budget` bytes passages spread evenly over it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= budget:
            yield _decoded(file.read(), path)
            return
        count = min(_PASSAGES, wanted)
        for index in range(count):
            file.seek(index * size // count)
            yield _decoded(file.read(budget // count).lstrip(_CONTINUATION), path)


def _decoded(data: bytes, path: Path) -> str:
    try:
        # incremental: a passage may end within a character
        return codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None


def read_jsonl(
    path: Path, encoder: Callable[[], TextEncoder], wanted: int, length: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Windows of the lines of a .jsonl file, lines in random order: `wanted` or more where it has so many.

    Each line is an object with "input_ids", a list of integers, or "text"; what else it has is left
    aside. The encoder is asked for at the first line that needs one.

    Raises DataError naming the line that is something else.
    """
    rows: list[np.ndarray] = []
    with path.open("rb") as file:
        sizes = np.fromiter(map(len, file), np.int64)
        starts = np.cumsum(sizes) - sizes
        for index in rng.permutation(sizes.size):
            file.seek(starts[index])
            line = file.readline()
            if line.strip():
                rows += _line_windows(index + 1, line, path, encoder, length)
            if len(rows) >= wanted:
                break
    if not rows:
        raise DataError(f"{path} holds no samples")
    return rows


def _line_windows(
    number: int, line: bytes, path: Path, encoder: Callable[[], TextEncoder], length: int
) -> list[np.ndarray]:
    try:
        sample = json.loads(line)
    except ValueError as error:  # of JSON and of UTF-8
        raise DataError(f"{path}, line {number} is not JSON: {error}") from None
    ids = sample.get("input_ids") if isinstance(sample, dict) else None
    if isinstance(ids, list) and all(type(token) is int and abs(token) < 2**63 for token in ids):
        return windows(np.array(ids, np.int64), length)
    text = sample.get("text") if isinstance(sample, dict) else None
    if isinstance(text, str) and ids is None:
        return encoder().windows(text, length)
    raise DataError(f'{path}, line {number} must be an object with "text" or with "input_ids", a list of integers')

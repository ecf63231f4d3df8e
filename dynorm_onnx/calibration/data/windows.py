"""Token ids cut in windows, and samples divided in those to calibrate on and those held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

HELD_OUT = 6  # one sample in so many is held out,
ENOUGH = 256  # but no more than these: they say as much, and each is run twice


def windows(ids: np.ndarray, length: int) -> list[np.ndarray]:
    """Cut ids, integers [n], in contiguous windows of `length` tokens; the last one may be shorter."""
    return [ids[start : start + length] for start in range(0, ids.size, length)]


def held_out(samples: int) -> int:
    """How many samples are wanted for validation beside `samples` for calibration."""
    return min(max(1, -(-samples // (HELD_OUT - 1))), ENOUGH)


def divide(items: Sequence[T], samples: int) -> tuple[list[T], list[T]]:
    """(calibration, validation): at most `samples` of the front, at most held_out(samples) of the tail.

    Each is spread evenly over its part, and no item is in both. Of a single item both are that item,
    since there is no other.
    """
    if len(items) < 2:
        return list(items), list(items)
    front = len(items) - min(-(-len(items) // HELD_OUT), ENOUGH)
    return _spread(items[:front], samples), _spread(items[front:], held_out(samples))


def _spread(items: Sequence[T], count: int) -> list[T]:
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]

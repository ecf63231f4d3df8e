"""Guesses at how a text goes on, from how the same few tokens went on before."""

from __future__ import annotations

from collections.abc import Sequence

_ORDERS = (6, 4, 2)  # tokens looked up, the most telling first


class Drafts:
    """A memory of texts: for every few tokens in a row, the token that came after them last time."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}

    def learn(self, text: Sequence[int], new: int) -> None:
        """Remember the last `new` tokens of the text, each with those before it."""
        for end in range(len(text) - new, len(text)):
            for order in _ORDERS:
                if end >= order:
                    self._after[tuple(text[end - order : end])] = text[end]

    def guess(self, text: Sequence[int], count: int) -> list[int]:
        """The next tokens of the text, at most `count`: fewer where nothing like it was seen."""
        tail = list(text[-_ORDERS[0] :])
        guessed: list[int] = []
        while len(guessed) < count:
            keys = (tuple(tail[-order:]) for order in _ORDERS if len(tail) >= order)
            found = next((self._after[key] for key in keys if key in self._after), None)
            if found is None:
                break
            guessed.append(found)
            tail.append(found)
        return guessed

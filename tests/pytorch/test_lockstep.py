"""Passes that wait for each other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from dynorm_onnx.pytorch.lockstep import Pass, run_in_lockstep


def test_every_place_is_dealt_with_once_with_all_passes_there() -> None:
    solved: dict[str, float] = {}
    seen: list[tuple[str, dict[int, float]]] = []

    def work(start: float) -> Callable[[Pass], None]:
        def run(current: Pass) -> None:
            value = start
            for place in ("a", "b"):
                current.stop(place, value)
                value *= solved[place]

        return run

    def deal_with(place: str, items: Mapping[int, Any]) -> None:
        seen.append((place, dict(items)))
        solved[place] = 10.0

    run_in_lockstep([work(1.0), work(2.0)], deal_with)
    assert seen == [("a", {0: 1.0, 1: 2.0}), ("b", {0: 10.0, 1: 20.0})]


def test_passes_that_go_different_ways() -> None:
    seen: list[tuple[str, set[int]]] = []

    def work(*places: str) -> Callable[[Pass], None]:
        return lambda current: [current.stop(place, None) for place in places] and None

    run_in_lockstep([work("a", "c"), work("b", "c"), work("b", "c"), work()], lambda p, i: seen.append((p, set(i))))
    assert seen == [("b", {1, 2}), ("c", {1, 2}), ("a", {0}), ("c", {0})]


@pytest.mark.parametrize("where", ["work", "deal_with"])
def test_an_error_ends_all_passes(where: str) -> None:
    ended: list[int] = []
    before = threading.active_count()

    def work(number: int) -> Callable[[Pass], None]:
        def run(current: Pass) -> None:
            try:
                current.stop("a", None)
                if where == "work" and number == 1:
                    raise ValueError("in the middle")
                current.stop("b", None)
            finally:
                ended.append(number)

        return run

    def deal_with(place: str, items: Mapping[int, Any]) -> None:
        if where == "deal_with" and place == "b":
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        run_in_lockstep([work(0), work(1), work(2)], deal_with)
    assert sorted(ended) == [0, 1, 2]
    assert threading.active_count() == before

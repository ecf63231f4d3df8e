"""The search for what must be kept, on damages that are known."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from dynorm_onnx.conversion.costliest import SLACK, keep_costliest


def search(costs: dict[str, float], bound: float):
    tried: list[frozenset[str]] = []

    def attempt(kept: frozenset[str]) -> float:
        tried.append(kept)
        return sum(cost for name, cost in costs.items() if name not in kept)

    return keep_costliest(attempt, lambda damage: damage, lambda _: costs, bound), tried


@given(st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=60), st.floats(1e-3, 5.0))
def test_keeps_as_few_as_it_can_in_few_attempts(values: list[float], bound: float) -> None:
    costs = {f"site{i}": value for i, value in enumerate(values)}
    met, tried = search(costs, bound)
    slack = len(values) // SLACK
    assert len(tried) <= 2 + math.ceil(math.log2(len(values)))
    if slack and met is not None:
        assert len(tried) <= 2 + math.ceil(math.log2(len(values) / (slack + 1)))
    ordered = sorted(values, reverse=True)
    possible = [k for k in range(len(values)) if sum(ordered[k:]) <= bound]
    if not possible:
        assert met is None
        return
    assert met is not None and met.outcome <= bound
    assert possible[0] <= len(met.kept) <= possible[0] + slack
    assert sorted(met.kept.values(), reverse=True) == ordered[: len(met.kept)]


def test_asks_for_costs_only_where_the_bound_is_missed() -> None:
    def never(_: float) -> dict[str, float]:
        raise AssertionError("costs were asked for")

    met = keep_costliest(lambda kept: 0.5, lambda damage: damage, never, 0.6)
    assert met is not None and met.kept == {}

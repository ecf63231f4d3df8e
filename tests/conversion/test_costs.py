"""What norms cost of a bound: how many costs are measured, and how neighbours share one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynorm_onnx.conversion.costs import MOST_MEASURED, neighbours, shared


@given(st.integers(1, 200))
def test_few_costs_are_measured_however_many_norms_there_are(count: int) -> None:
    norms = list(range(count))
    groups = neighbours(norms)  # type: ignore[arg-type]
    assert len(groups) <= MOST_MEASURED
    assert [norm for group in groups for norm in group] == norms
    assert count > MOST_MEASURED or all(len(group) == 1 for group in groups)


def test_neighbours_share_a_cost_by_their_errors() -> None:
    assert shared(1.0, {"a": 0.1, "b": 0.3}) == {"a": pytest.approx(0.1), "b": pytest.approx(0.9)}
    assert shared(-1.0, {"a": 0.1, "b": 0.3}) == {"a": -0.5, "b": -0.5}
    assert shared(1.0, {"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}
    assert shared(1.0, {"a": math.nan, "b": 1.0}) == {"a": 0.5, "b": 0.5}

"""Timing: the bookkeeping, never the numbers."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from dynorm_onnx.errors import DataError, UsageError
from dynorm_onnx.runtime import timing
from dynorm_onnx.runtime.arrays import feed_value
from dynorm_onnx.runtime.session import make_session
from dynorm_onnx.runtime.timing import Timing, bind, time_variants
from tests.runtime.models import bfloat16_scale, linear

X = {"x": np.ones((2, 4), np.float32)}
SESSION = make_session(linear(np.eye(4, dtype=np.float32)), threads=1)  # without workers, no pauses


def test_quantiles() -> None:
    row = Timing.of("original", "cpu", [i / 1000 for i in range(101)])
    assert row == Timing("original", "cpu", pytest.approx(50), pytest.approx(10), pytest.approx(90), 101)
    assert {"variant", "provider", "median_ms", "p10_ms", "p90_ms"} <= set(row.as_dict())
    assert dataclasses.asdict(row) == row.as_dict()


def test_variants_come_back_in_order_with_runs() -> None:
    rows = time_variants({"b": SESSION, "a": SESSION}, X, seconds=1e-6)
    assert [row.variant for row in rows] == ["b", "a"]
    assert all(row.runs >= timing._LEAST_ROUNDS and row.p10_ms <= row.median_ms <= row.p90_ms for row in rows)


def test_every_variant_starts_a_round_in_turn(monkeypatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(timing, "bind", lambda name, feeds, provider: lambda: order.append(name))
    monkeypatch.setattr(timing, "_burst_length", lambda run, seconds: 1)
    monkeypatch.setattr(timing, "_has_workers", lambda session: False)
    time_variants({name: name for name in "abc"}, X, seconds=1e-9)
    assert "".join(order[:12]) == "abcbcacababc"


def test_only_sessions_with_worker_threads_are_waited_for() -> None:
    assert not timing._has_workers(SESSION)
    assert timing._has_workers(make_session(linear(np.eye(4, dtype=np.float32)), threads=2))
    assert timing._has_workers(make_session(linear(np.eye(4, dtype=np.float32))))


def test_the_first_run_of_a_burst_is_dropped() -> None:
    runs: list[int] = []
    assert len(timing._burst(lambda: runs.append(1), 5)) == 4
    assert len(runs) == 5
    assert len(timing._burst(lambda: runs.append(1), 1)) == 1


@pytest.mark.parametrize("provider", ["cpu"])
def test_bound_runs_of_bfloat16(provider: str) -> None:
    session = make_session(bfloat16_scale(), provider=provider)
    x = np.ones((3, 4), ml_dtypes.bfloat16)
    run = bind(session, {"x": x, "s": np.array(2, ml_dtypes.bfloat16)}, provider)
    run()
    run()


def test_bound_inputs_may_lie_on_the_device_already() -> None:
    bind(SESSION, {"x": feed_value(X["x"]), "more": feed_value(X["x"])})()


def test_an_input_without_feed_and_bad_seconds() -> None:
    with pytest.raises(DataError, match="'x'"):
        bind(SESSION, {"y": X["x"]})
    with pytest.raises(UsageError, match="seconds"):
        time_variants({"a": SESSION}, X, seconds=0)

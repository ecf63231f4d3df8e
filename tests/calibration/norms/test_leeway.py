"""How many channels may stay coupled, and how steep a function may be, by what the norms of a model see."""

from __future__ import annotations

import pytest

from dynorm_onnx.calibration.norms.fit_rows import Leeway
from dynorm_onnx.calibration.norms.leeway import MOST_COUPLED, leeways_of

CHANNELS = {"input_norm": 640, "mlp_norm": 640, "q_norm": 256}


@pytest.mark.parametrize(
    ("coupled", "fades", "expected"),
    [(None, False, MOST_COUPLED), (4, False, 4), (4, True, MOST_COUPLED), (0, False, 0), (100, True, 100)],
)
def test_a_model_with_sinks_couples_all_its_norms(coupled: int | None, fades: bool, expected: int) -> None:
    found = leeways_of(coupled, {"mlp_norm"}, CHANNELS, fades=fades)
    assert {name: own.most_coupled for name, own in found.items()} == dict.fromkeys(CHANNELS, expected)
    assert [own for own in found.values() if own == Leeway(expected, True)] == [found["input_norm"], found["mlp_norm"]]
    assert found["q_norm"] == Leeway(expected, False), "its stream has no sinks, so it may be steep"


@pytest.mark.parametrize(("coupled", "expected"), [(None, 0), (4, 4)])
def test_a_model_without_sinks_stays_pure_unless_told_otherwise(coupled: int | None, expected: int) -> None:
    assert set(leeways_of(coupled, set(), CHANNELS).values()) == {Leeway(expected, False)}

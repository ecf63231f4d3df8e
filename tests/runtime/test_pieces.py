"""A model that is run piece by piece gives what it gives whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from dynorm_onnx.errors import DataError
from dynorm_onnx.graph.edit.pieces import cut_by_weights, part_of_model, weight_bytes
from dynorm_onnx.graph.files.model_io import load, prepare
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.pieces import PiecewiseModel, Recorded, count_runs, open_for_batches, open_model, run_batches
from dynorm_onnx.runtime.session import make_session
from tests.shipped import MODEL

LIMIT = 400_000  # bytes; the model has 5.3 million


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return prepare(load(MODEL))


@pytest.fixture(scope="module")
def feeds() -> dict[str, np.ndarray]:
    return {"input_ids": np.random.default_rng(0).integers(0, 256, (2, 40))}


def test_the_outputs_are_those_of_the_whole_model(model: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    pieces = PiecewiseModel(model, limit=LIMIT)
    whole = run(make_session(MODEL), feeds)
    np.testing.assert_allclose(run(pieces, feeds)["logits"], whole["logits"], atol=2e-4)
    assert [port.name for port in pieces.get_outputs()] == ["logits"]
    assert pieces.get_inputs()[0].type == "tensor(int64)"


def test_each_piece_is_opened_once_for_all_batches(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [{"input_ids": np.random.default_rng(i).integers(0, 256, (1, 8 + i))} for i in range(3)]
    pieces = PiecewiseModel(model, limit=LIMIT)
    opened: list[object] = []

    def counted(*arguments, **knobs):
        opened.append(make_session(*arguments, **knobs))
        return opened[-1]

    monkeypatch.setattr("dynorm_onnx.runtime.pieces.make_session", counted)
    monkeypatch.setattr("dynorm_onnx.runtime.pieces.ACTIVATIONS_LIMIT", 10_000)  # some go to files
    ran: list[int] = []
    outputs = list(run_batches(pieces, batches, ran=lambda: ran.append(1)))
    assert len(opened) == len(cut_by_weights(model.graph, LIMIT))
    assert len(ran) == count_runs(pieces, 3) == 3 * len(opened)
    for feeds, found in zip(batches, outputs, strict=True):
        np.testing.assert_allclose(found["logits"], run(make_session(MODEL), feeds)["logits"], atol=2e-4)


def test_a_recorded_model_is_run_once(feeds: dict[str, np.ndarray]) -> None:
    recorded = Recorded(make_session(MODEL))
    assert count_runs(recorded, 2) == 2
    ran: list[int] = []
    first, again = (list(run_batches(recorded, [feeds, feeds], ran=lambda: ran.append(1))) for _ in range(2))
    assert len(ran) == 2 and count_runs(recorded, 2) == 0
    first[0].clear()
    np.testing.assert_array_equal(again[0]["logits"], first[1]["logits"])
    assert recorded.get_outputs()[0].name == "logits"


def test_pieces_keep_to_the_limit_and_share_no_large_weight(model: ir.Model) -> None:
    pieces = cut_by_weights(model.graph, LIMIT)
    assert len(pieces) > 10
    parts = [part_of_model(model, piece.inputs, piece.outputs) for piece in pieces]
    assert max(map(weight_bytes, parts)) < 1.1 * LIMIT  # constants may be in several
    assert sum(map(weight_bytes, parts)) < 1.05 * weight_bytes(model)


def test_one_piece_where_everything_fits(model: ir.Model) -> None:
    (piece,) = cut_by_weights(model.graph, 1 << 30)
    assert (piece.inputs, piece.outputs) == (("input_ids",), ("logits",))


def test_open_model_chooses_by_size(model: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    assert not isinstance(open_model(MODEL), PiecewiseModel)
    small = open_model(Path(MODEL), limit=1000)
    assert isinstance(small, PiecewiseModel)
    assert isinstance(open_model(model, limit=1000), PiecewiseModel)


def test_for_batches_a_model_is_held_whole_up_to_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynorm_onnx.runtime.pieces.BATCHES_LIMIT", 1000)
    assert isinstance(open_for_batches(MODEL), PiecewiseModel)
    assert not isinstance(open_model(MODEL), PiecewiseModel)


def test_a_missing_feed_is_named(model: ir.Model) -> None:
    with pytest.raises(DataError, match="input_ids"):
        run(PiecewiseModel(model, limit=LIMIT), {})

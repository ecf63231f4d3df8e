"""The stage runner delivers what running the whole models would, and computes each node once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dynorm_onnx.calibration.stages.plan import SolvePoint, make_plan
from dynorm_onnx.calibration.stages.run_stages import StageRunner
from dynorm_onnx.runtime import pieces
from dynorm_onnx.runtime.activations import ActivationStore
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import make_session
from tests.tolerances import TOLERANCE, relative_error

LAYERS = 4
CHANNELS = 6
BOUND = TOLERANCE["float32"]


def residual_model(slopes: list[float]) -> ir.Model:
    """x -> x + tanh(slope_i x W_i) + mask, layer by layer; mask and table come from the input too."""
    rng = np.random.default_rng(0)
    lines, stream = ["mask = Abs(bias)"], "x"
    for i in range(LAYERS):
        lines += [
            f"y{i} = Mul({stream}, slope{i})",
            f"h{i} = MatMul(y{i}, w{i})",
            f"t{i} = Tanh(h{i})",
            f"m{i} = Add(t{i}, mask)",
            f"r{i} = Add({stream}, m{i})",
        ]
        stream = f"r{i}"
    lines.append(f"out = Identity({stream})")
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[n, {CHANNELS}] x, float[n, {CHANNELS}] bias) => (float[n, {CHANNELS}] out)
        {{ {" ".join(lines)} }}"""
    )
    for i in range(LAYERS):
        weight = rng.normal(size=(CHANNELS, CHANNELS)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, f"w{i}"))
        slope = np.array(slopes[i], np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(slope, f"slope{i}"))
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def points_of(model: ir.Model) -> list[SolvePoint]:
    """One point at every Mul, which wants its input, its output and the stream behind it."""
    found = []
    for i in range(LAYERS):
        node = next(node for node in model.graph if node.outputs[0].name == f"y{i}")
        stream = str(node.inputs[0].name)
        found.append(SolvePoint(f"y{i}", (node,), original=(f"y{i}", stream, "mask"), converted=(stream, "mask")))
    return found[::-1]  # any order


def batches(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        {name: rng.normal(size=(5 + i, CHANNELS)).astype(np.float32) for name in ("x", "bias")} for i in range(count)
    ]


def every_value(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All intermediate values, by running the model with all of them as outputs."""
    shown = model.clone()
    shown.graph.outputs.extend(node.outputs[0] for node in shown.graph if node.outputs[0].name != "out")
    return run(make_session(shown, optimization="none"), feeds) | feeds


@pytest.mark.parametrize("whole", [1 << 30, 0], ids=["whole", "in pieces"])
@pytest.mark.parametrize("memory_limit", [1 << 30, 0], ids=["memory", "memory-mapped"])
def test_delivers_what_whole_runs_deliver(memory_limit: int, whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "BATCHES_LIMIT", whole)
    monkeypatch.setattr(pieces, "PIECE_LIMIT", whole)
    first, second = [1.0, 2.0, 0.5, 1.5], [0.9, 1.7, 0.7, 1.1]
    original, converted = residual_model(first), residual_model(first)
    data = batches(3)
    finished = residual_model(second)
    expected_original = [every_value(original, feeds) for feeds in data]
    expected_converted = [every_value(finished, feeds) for feeds in data]
    seen = []
    with StageRunner(original, converted, points_of(original), data, memory_limit=memory_limit) as runner:
        for number, point in enumerate(runner.points()):
            for batch, values in enumerate(runner.activations()):
                for name in point.original:
                    assert relative_error(values.original[name], expected_original[batch][name]) < BOUND
                for name in point.converted:
                    assert relative_error(values.converted[name], expected_converted[batch][name]) < BOUND
            seen.append(point.name)
            slope = converted.graph.initializers[f"slope{number}"]  # what a solver does
            slope.const_value = ir.tensor(np.array(second[number], np.float32), name=slope.name)
    assert seen == [f"y{i}" for i in range(LAYERS)]


def test_a_stage_is_opened_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """What leads to the first point may be nearly all of the model, where the norms before it are kept."""
    opened: list[int] = []
    monkeypatch.setattr(pieces, "BATCHES_LIMIT", 0)
    monkeypatch.setattr(pieces, "PIECE_LIMIT", 0)

    def counted(part: ir.Model, **options: Any) -> Any:
        opened.append(sum(node.op_type == "Mul" for node in part.graph))
        return make_session(part, **options)

    monkeypatch.setattr(pieces, "make_session", counted)
    model = residual_model([1.0] * LAYERS)
    with StageRunner(model, model, points_of(model)[:1], batches(1)) as runner:
        for _ in runner.points():
            assert len(list(runner.activations())) == 1
    assert len(opened) >= LAYERS and max(opened) <= 1


def test_no_node_is_computed_twice() -> None:
    model = residual_model([1.0] * LAYERS)
    plan = make_plan(model.graph, points_of(model))
    for stages in (plan.original, plan.converted):
        made = Counter(name for stage in stages for name in stage.outputs)
        assert set(made.values()) <= {1}
    given_out = {name for stage in plan.converted for name in stage.outputs}
    assert "mask" not in given_out  # the same in both models: the original's stages make it


def test_nothing_is_kept_longer_than_it_is_used() -> None:
    model = residual_model([1.0] * LAYERS)
    plan = make_plan(model.graph, points_of(model))
    assert plan.last_use_original["mask"] == LAYERS - 1
    assert plan.last_use_converted["r0"] == 2  # r1 = r0 + what comes of y1
    assert f"r{LAYERS - 1}" not in plan.last_use_converted  # behind the last point: never run


def test_store_deletes_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    array = np.arange(12.0).reshape(3, 4)
    with ActivationStore(memory_limit=0) as store:
        store.put(0, "a", array)
        store.put(0, "b", array)
        np.testing.assert_array_equal(store.get(0, "a"), array)
        assert len(list(tmp_path.rglob("*.bin"))) == 2
        store.drop("a")
        assert len(list(tmp_path.rglob("*.bin"))) == 1
        with pytest.raises(KeyError):
            store.get(0, "a")
    assert not list(tmp_path.iterdir())

"""validate() on real sessions: logits recognised, padding left out, JSON as documented."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import onnx
import pytest
from onnx import parser

from dynorm_onnx.errors import DataError
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.classes import same_classes, tells_classes
from dynorm_onnx.runtime.logits import is_causal, kept_positions, logits_output, token_input
from dynorm_onnx.runtime.session import make_session
from dynorm_onnx.runtime.validate import validate
from tests.runtime.models import language_model, linear


def feeds(seed: int = 0, batch: int = 2, length: int = 6, padding: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, 11, (batch, length))
    mask = np.ones_like(ids)
    mask[0, length - padding :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def bidirectional() -> onnx.ModelProto:
    """The language model with the mean over the whole row in place of the running mean."""
    model = language_model()
    replaced = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[B, T, 8] masked) => (float[B, T, 8] h) {
          axis = Constant<value_ints = [1]>()
          mean = ReduceMean<keepdims = 1>(masked, axis)
          h = Add(masked, mean)
        }"""
    )
    nodes = [n for n in model.graph.node if n.op_type not in ("CumSum", "Div")]
    at = next(i for i, n in enumerate(nodes) if n.op_type == "MatMul")
    nodes[at:at] = list(replaced.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def test_a_model_against_itself_is_perfect() -> None:
    session = make_session(language_model())
    result = validate(session, session, [feeds(0), feeds(1)])
    assert result.samples == 4
    assert result.outputs["logits"].relative_error == 0
    assert result.quality is not None
    assert result.quality.tokens == 24
    assert result.quality.kl_mean == 0
    assert result.quality.top1_agreement == 1
    assert result.quality.loss_original == result.quality.loss_converted > 0
    assert result.warnings == ()


def test_padding_changes_nothing() -> None:
    a, b = make_session(language_model()), make_session(language_model(bias=1.0))
    padded = feeds(0, batch=1, padding=2)
    cut = {name: array[:, :4] for name, array in padded.items()}
    long, short = validate(a, b, [padded]), validate(a, b, [cut])
    assert long.quality is not None and short.quality is not None
    assert long.quality.tokens == short.quality.tokens == 4
    assert long.quality.kl_mean == pytest.approx(short.quality.kl_mean, rel=1e-5)
    assert long.quality.loss_original == pytest.approx(short.quality.loss_original, rel=1e-5)
    assert long.outputs["logits"].relative_error == pytest.approx(short.outputs["logits"].relative_error, rel=1e-5)


def test_json_shape() -> None:
    a, b = make_session(language_model()), make_session(language_model(bias=1.0))
    shown = validate(a, b, [feeds()]).as_dict()
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert set(shown) == {"samples", "tokens", "outputs", "kl", "top1_agreement", "loss", "by_position"}
    measures = {"relative_error", "absolute_error", "cosine", "cosine_min", "classes", "class_agreement"}
    assert set(shown["outputs"]["logits"]) == measures
    assert set(shown["kl"]) == {"mean", "median", "p99", "worst", "worst_out_of_proportion"}
    assert set(shown["loss"]) == {"original", "converted"}
    assert set(shown["by_position"]) == {"first", "others"}
    assert set(shown["by_position"]["first"]) == {"tokens", "kl", "top1_agreement", "loss"}


def test_a_conversion_that_overflows_is_a_warning_and_null_in_json() -> None:
    a, b = make_session(language_model()), make_session(language_model(bias=float("inf")))
    result = validate(a, b, [feeds()])
    assert "NaN or infinity" in result.warnings[0]
    assert result.as_dict()["outputs"]["logits"]["relative_error"] is None
    json.dumps(result.as_dict(), allow_nan=False)


def test_a_model_without_logits_has_output_errors_only() -> None:
    weight = np.eye(8, dtype=np.float32)
    a, b = make_session(linear(weight)), make_session(linear(weight * 1.1))
    result = validate(a, b, [{"x": np.ones((3, 8), np.float32)}])
    assert result.quality is None
    assert result.samples == 3
    assert result.outputs["y"].relative_error == pytest.approx(0.1, rel=1e-5)
    assert result.outputs["y"].cosine == pytest.approx(1)


def test_the_classes_of_a_classifier_are_compared() -> None:
    columns = np.eye(4, dtype=np.float32)
    a, b = make_session(linear(columns)), make_session(linear(columns[:, [1, 0, 2, 3]]))
    batches = [{"x": columns[[0, 1, 2]]}, {"x": columns[[3]]}]
    error = validate(a, b, batches).outputs["y"]
    assert error.class_agreement == 0.5 and error.cosine is None


def test_a_probability_is_compared_at_one_half() -> None:
    a, b = (make_session(linear(np.array([[scale]], np.float32))) for scale in (1.0, 0.5))
    error = validate(a, b, [{"x": np.array([[0.2], [0.4], [0.6], [0.8]], np.float32)}]).outputs["y"]
    assert error.class_agreement == 0.5
    assert error.absolute_error == pytest.approx(0.25)


def test_which_outputs_tell_classes() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((6, 12))
    assert tells_classes("logits", rows, 6) == "scores"
    assert tells_classes("logits", rows, 3) is None, "its rows are not the samples"
    assert tells_classes("sentence_embedding", rows, 6) is None
    assert tells_classes("out", rows / np.linalg.norm(rows, axis=1, keepdims=True), 6) is None
    assert tells_classes("out", rng.random((6, 1)), 6) == "probability"
    assert tells_classes("out", rng.random((6, 1)) + 0.5, 6) is None
    assert tells_classes("last_hidden_state", rng.random((6, 3, 12)), 6) is None
    broken = np.full((6, 12), np.nan)
    assert not same_classes("scores", rows, broken).any()


def test_damage_on_other_text_than_the_calibration_text_is_a_warning() -> None:
    a, near, far = (make_session(language_model(bias=bias)) for bias in (0.0, 1.0, 2.0))
    here, there = validate(a, far, [feeds()]), validate(a, near, [feeds()])
    both = dataclasses.replace(here, on_calibration=there)
    assert both.times_worse_than_on_calibration > 1.3
    assert "calibration data" in both.warnings[-1] and "--data" in both.warnings[-1]
    assert both.as_dict()["on_calibration"]["kl"]["mean"] < both.as_dict()["kl"]["mean"]
    alike = dataclasses.replace(here, on_calibration=here)
    assert alike.times_worse_than_on_calibration == 1 and alike.warnings == here.warnings
    assert here.times_worse_than_on_calibration is None
    same = validate(a, a, [feeds()])
    assert dataclasses.replace(same, on_calibration=same).times_worse_than_on_calibration is None


def test_outputs_of_another_shape_are_named_and_not_compared() -> None:
    a, b = make_session(linear(np.eye(4, dtype=np.float32))), make_session(linear(np.ones((4, 5), np.float32)))
    found = validate(a, b, [{"x": np.ones((3, 4), np.float32)}])
    assert not found.outputs and found.largest_error == math.inf
    assert found.other_shapes == ("y (in 1 of 1 batches: [3, 5] for [3, 4])",)
    assert any("their shapes are not the original's: y" in line for line in found.warnings)


def test_no_data_is_an_error() -> None:
    session = make_session(language_model())
    with pytest.raises(DataError, match="no held-out sample"):
        validate(session, session, [])


def test_only_a_causal_model_has_a_loss() -> None:
    session = make_session(bidirectional())
    result = validate(session, session, [feeds(padding=1)])
    assert result.quality is not None
    assert result.quality.loss_original is None
    assert "loss" not in result.as_dict()


@pytest.mark.parametrize("padding", [0, 2])
def test_causality_is_found_by_running(padding: int) -> None:
    batch = feeds(padding=padding)
    for model, causal in ((language_model(), True), (bidirectional(), False)):
        session = make_session(model)
        found = logits_output(batch, run(session, batch))
        assert found is not None
        assert is_causal(session, batch, found) is causal


def test_which_output_is_logits() -> None:
    batch = {"input_ids": np.array([[5, 40]]), "attention_mask": np.ones((1, 2), np.int64)}
    rows = np.zeros((1, 2, 64), np.float32)
    assert logits_output(batch, {"logits": rows}) is not None
    assert logits_output(batch, {"last_hidden_state": rows}) is None
    found = logits_output(batch, {"present": np.zeros((1, 2, 2, 8)), "linear_9": rows}, vocabulary=64)
    assert found is not None and found.name == "linear_9" and found.aligned
    assert logits_output(batch, {"logits": np.zeros((1, 9), np.float32)}) is None, "a classifier of 9 labels"
    last = logits_output(batch, {"logits": rows[:, -1:]})
    assert last is not None and not last.aligned
    assert logits_output({"pixels": np.zeros((1, 3))}, {"logits": rows}) is None


def test_which_input_holds_tokens() -> None:
    ids = np.zeros((2, 3), np.int64)
    assert token_input({"attention_mask": ids, "position_ids": ids, "input_ids": ids}) == "input_ids"
    assert token_input({"attention_mask": ids, "tokens_in": ids}) == "tokens_in"
    assert token_input({"a": ids, "b": ids}) is None


def test_a_mask_over_past_positions_is_cut() -> None:
    mask = np.array([[0, 1, 1, 1], [1, 1, 1, 0]])
    kept = kept_positions({"input_ids": np.zeros((2, 2), np.int64), "attention_mask": mask})
    assert kept is not None
    np.testing.assert_array_equal(kept, [[True, True], [True, False]])


def test_checker_accepts_the_models() -> None:
    for model in (language_model(), bidirectional()):
        onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(("shift", "told"), [(1.0, True), (0.1, False)])
def test_probabilities_far_from_the_originals_on_one_side_of_a_half(shift: float, told: bool) -> None:
    """No decision changes, and that says little."""
    near_zero = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[n, 1] x) => (float[n, 1] p) { z = Sub(x, s) p = Sigmoid(z) }"""
    sessions = []
    for value in (10.0, 10.0 + shift):
        proto = onnx.parser.parse_model(near_zero)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value], np.float32), "s"))
        sessions.append(make_session(proto))
    x = np.random.default_rng(0).normal(size=(20, 1)).astype(np.float32)
    found = validate(*sessions, [{"x": x}])
    assert found.outputs["p"].class_agreement == 1
    assert any("p: its probabilities differ by" in line for line in found.warnings) is told

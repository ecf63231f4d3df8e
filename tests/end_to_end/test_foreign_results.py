"""What files of others give: outputs as large as values say, results that are ruined, times of tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dynorm_onnx import convert_model
from dynorm_onnx.conversion.distilled import is_worse
from dynorm_onnx.convert import main
from dynorm_onnx.errors import BoundError, ModelError
from dynorm_onnx.graph.values.sizes import sized_by_values
from dynorm_onnx.report.verdict import failed_training
from dynorm_onnx.runtime import variants
from dynorm_onnx.runtime.session import make_session
from dynorm_onnx.runtime.timing import time_variants
from tests.end_to_end.test_foreign_files import DATA, LIN, C, X, converted, model, outputs
from tests.tolerances import relative_error

START = "h = LayerNormalization<axis = -1>(x, w)\n"
DURATIONS = (
    START
    + """
  score = MatMul(h, head)
  flat = Reshape(score, minus_one)
  scaled = Mul(flat, three)
  wide = Abs(scaled)
  rounded = Ceil(wide)
  durations = Cast<to = 7>(rounded)
"""
)
REPEATED = (
    DURATIONS
    + """
  ends = CumSum(durations, zero)
  total = ReduceSum<keepdims = 0>(durations)
  steps = Range(zero, total, one)
  column = Unsqueeze(steps, at_one)
  past = GreaterOrEqual(column, ends)
  counted = Cast<to = 7>(past)
  place = ReduceSum<keepdims = 0>(counted, at_one)
  frames = Gather(rows, place)
"""
)
EXPANDED = (
    DURATIONS
    + """
  longest = ReduceMax<keepdims = 1>(durations)
  shape = Concat<axis = 0>(longest, at_one, at_one)
  lifted = Unsqueeze(rows, at_zero)
  wide_rows = Expand(lifted, shape)
  frames = Reshape(wide_rows, to_rows)
"""
)
CHOSEN = (
    START
    + """
  score = MatMul(h, head)
  flat = Reshape(score, minus_one)
  kept = Greater(flat, nothing)
  frames = Compress<axis = 0>(rows, kept)
"""
)
FOUND = CHOSEN.replace(
    "frames = Compress<axis = 0>(rows, kept)",
    """
  where = NonZero(kept)
  places = Squeeze(where, at_zero)
  frames = Gather(rows, places)
""",
)
UNIQUE = (
    START
    + """
  score = MatMul(h, head)
  scaled = Mul(score, three)
  rounded = Round(scaled)
  flat = Reshape(rounded, minus_one)
  values, places = Unique(flat)
  frames = Gather(rows, places)
"""
)
END = """
  g = LayerNormalization<axis = -1>(frames, w)
  y = MatMul(g, lin)
"""
SPELLINGS = {
    "a predicted length, Range": REPEATED,
    "Expand": EXPANDED,
    "Compress": CHOSEN,
    "NonZero": FOUND,
    "Unique": UNIQUE,
}  # fmt: skip


def sized(body: str, *, end: str = END, out: str = "float[m,8] y") -> onnx.ModelProto:
    """A model whose number of frames follows from what a norm gives."""
    text = f"g (float[n,4,8] x) => ({out}) {{\nrows = Reshape(x, to_rows)\n{body}{end}}}"
    rng = np.random.default_rng(4)
    weights = {
        "w": np.ones(C, np.float32), "lin": LIN, "head": rng.normal(size=(C, 1)).astype(np.float32),
        "minus_one": np.array([-1]), "to_rows": np.array([-1, C]), "three": np.array(3, np.float32),
        "zero": np.array(0), "one": np.array(1), "at_one": np.array([1]), "at_zero": np.array([0]),
        "nothing": np.array(0.1, np.float32),
    }  # fmt: skip
    proto = model(text, {name: array for name, array in weights.items() if name in text})
    return proto


@pytest.mark.parametrize("method", ["fit", "reconstruct"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_norms_whose_tokens_follow_from_values_are_kept_and_outputs_of_other_shapes_named(
    spelling: str, method: str, tmp_path: Path
) -> None:
    output, report = converted(sized(SPELLINGS[spelling]), tmp_path, method=method)
    assert [(site.name, site.status) for site in report.sites] == [("h", "converted"), ("g", "kept")]
    assert "cannot be paired" in str(report.sites[1].reason)
    assert np.isfinite(outputs(output, x=X)["y"]).all()
    if method == "reconstruct":
        assert any("lin" in line and "cannot be paired" in line for line in report.warnings)
    assert report.validation is not None
    if not report.validation.outputs:
        assert report.verdict is not None and "no output has the shape" in report.verdict.sentence
    told = any("their shapes are not the original's: y (in" in line for line in report.warnings)
    assert told is bool(report.validation.other_shapes)


def test_an_output_of_another_shape_is_named_and_the_rest_compared(tmp_path: Path) -> None:
    proto = sized(REPEATED, out="float[m,8] y, float[n,4,8] h")
    _, report = converted(proto, tmp_path, method="fit")
    assert report.validation is not None and "h" in report.validation.outputs
    assert report.validation.other_shapes and report.as_dict()["validation"]["other_shapes"]
    assert report.validation.largest_error == np.inf
    with pytest.raises(BoundError):
        converted(proto, tmp_path, method="fit", max_error=0.5)


def test_rmsnorm_needs_no_pairs(tmp_path: Path) -> None:
    output, report = converted(sized(REPEATED), tmp_path, to="rmsnorm")
    assert all(site.status == "converted" for site in report.sites)
    assert relative_error(outputs(output, x=X)["y"], outputs(sized(REPEATED), x=X)["y"]) < 1e-5


def test_sizes_that_lie_are_met_when_the_models_run(tmp_path: Path) -> None:
    """The frames are called n like the samples, so that only the arrays tell."""
    proto = sized(REPEATED)
    frames = onnx.helper.make_tensor_value_info("frames", onnx.TensorProto.FLOAT, ["n", C])
    proto.graph.value_info.append(frames)
    for method in ("fit", "reconstruct"):
        with pytest.raises(ModelError, match="g: its tokens cannot be paired by position"):
            converted(proto, tmp_path, method=method)


def test_where_what_says_so_stays_the_tokens_are_the_same(tmp_path: Path) -> None:
    _, report = converted(sized(FOUND), tmp_path, keep=["h"])
    assert [(site.name, site.status) for site in report.sites] == [("h", "kept"), ("g", "converted")]
    assert report.validation is not None and "y" in report.validation.outputs and not report.validation.other_shapes


def test_outputs_of_a_size_drawn_anew_in_every_run_are_timed() -> None:
    text = """g (float[n,4,8] x) => (float[m] y) {
      noise = RandomUniformLike<low = 0.0, high = 1000.0>(x)
      first = ReduceMax<keepdims = 0>(noise)
      count = Cast<to = 7>(first)
      steps = Range(zero, count, one)
      y = Cast<to = 1>(steps)
    }"""
    proto = model(text, {"zero": np.array(0), "one": np.array(1)})
    (row,) = time_variants({"original": make_session(proto, threads=1)}, {"x": X}, seconds=0.01)
    assert row.runs >= 5


def test_what_is_scattered_back_is_as_large_as_before() -> None:
    """An expert sees as many tokens as a router gives it; what comes back has its place again."""
    text = """g (float[4,8] x, float[4,8] s) => (float[4,8] y) {
      flat = ReduceSum<keepdims = 0>(s, last)
      kept = Greater(flat, nothing)
      where = NonZero(kept)
      place = Transpose(where)
      rows = GatherND(x, place)
      made = MatMul(rows, lin)
      y = ScatterND(x, place, made)
      counted = Shape(made)
      z = ConstantOfShape(counted)
    }"""
    weights = {"lin": LIN, "nothing": np.array(0, np.float32), "last": np.array([-1])}
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model(text, weights, opset=18))).graph
    found = sized_by_values(graph, [value for value in graph.inputs if value.name == "s"])
    assert {value.name for value in found} == {"where", "place", "rows", "made", "z"}
    assert {by for value, by in found.items() if value.name != "z"} == {"NonZero"}


def test_timing_takes_no_longer_than_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it may take goes by what was taken; a tiny model has run often enough by then."""
    proto = model("g (float[n,4,8] x) => (float[n,4,8] y) { y = LayerNormalization<axis = -1>(x, w) }",
                  {"w": np.ones(C, np.float32)})  # fmt: skip
    onnx.save(proto, tmp_path / "model.onnx")
    report = convert_model(tmp_path / "model.onnx", data=DATA, method="fit", output=tmp_path / "out.onnx")
    assert report.timing and all(row.runs >= 5 for row in report.timing)
    asked: list[float] = []
    monkeypatch.setattr(variants, "time_model", lambda sessions, feeds, *, provider, seconds: asked.append(seconds))
    for seconds in (-5.0, 1e9):
        variants.time_within(proto, proto, DATA[0], seconds)
    assert asked == [variants.LEAST_SECONDS, variants.MOST_SECONDS]


def test_a_ruined_result_is_told_first_on_every_way_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Lengths of tokens that differ by ten thousand: no function of single channels stands in for such a norm."""
    rng = np.random.default_rng(0)
    data = [{"x": (rng.normal(size=(2, 4, C)) * 100.0 ** rng.uniform(-2, 2, (2, 4, 1))).astype(np.float32)}
            for _ in range(12)]  # fmt: skip
    proto = model("g (float[n,4,8] x) => (float[n,4,8] y) { y = LayerNormalization<axis = -1>(x, w) }",
                  {"w": np.ones(C, np.float32)})  # fmt: skip
    onnx.save(proto, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=np.concatenate([feeds["x"] for feeds in data]))
    arguments = [str(tmp_path / "model.onnx"), "--data", str(tmp_path / "data.npz"), "--no-time", "-q"]
    page = tmp_path / "page.html"
    assert main([*arguments, "--method", "fit", "--coupled", "0", "--report", str(page)]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("this model is not usable: output y:") and "the relative error is 0." in first
    assert any(line.startswith("warning: the function misses over half") for line in rest[:8])
    html = page.read_text("utf-8")
    assert html.index("misses over half") < html.index("<h1>") and "not usable" in html[: html.index("<h1>")]
    assert main([*arguments, "--method", "fit", "--coupled", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["alarms"] and told["verdict"]["usable"] is False and told["verdict"]["reasons"]


@pytest.mark.parametrize(("losses", "fades", "worse"), [
    ([0.5, 0.4], False, False), ([0.5, 0.6], False, True), ([0.5, 0.6], True, False), ([0.5, np.nan], True, True),
    ([0.5], False, False), ([0.5, np.inf], False, True),
])  # fmt: skip
def test_a_training_that_made_it_worse(losses: list[float], fades: bool, worse: bool) -> None:
    run = {"losses": [{"step": step, "loss": loss} for step, loss in enumerate(losses)]}
    assert is_worse(run, fades=fades) is worse
    if np.isfinite(losses[-1]):
        assert not failed_training(run | {"kept": True}) and not failed_training(None)
    (told,) = failed_training(run | {"kept": False})
    assert "nothing of it is kept" in told and f"{losses[0]:.4g}" in told


def test_a_training_that_could_not_do_without_the_channels_says_so() -> None:
    (told,) = failed_training({"losses": [{"step": 1, "loss": 0.05}, {"step": 120, "loss": 89.5}], "kept": True})
    assert "89.5" in told and "coupled channels that went" in told


def test_nothing_of_a_training_that_diverged_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    proto = model("""g (float[n,4,8] x) => (float[n,4,8] y) {
      h = MatMul(x, lin)
      n1 = LayerNormalization<axis = -1>(h, w)
      y = MatMul(n1, lin2)
    }""", {"w": np.ones(C, np.float32), "lin": LIN, "lin2": LIN.T.copy()})  # fmt: skip
    knobs = {"method": "distil", "steps": 8, "train": "all"}
    _, bad = converted(proto, tmp_path, **knobs, learning_rate=30.0)
    assert bad.distillation is not None and bad.distillation["kept"] is False
    assert any("nothing of it is kept" in line for line in bad.alarms)
    _, good = converted(proto, tmp_path, **knobs, learning_rate=1e-4)
    assert good.distillation is not None and good.distillation["kept"] and not good.alarms
    assert bad.validation is not None and bad.validation.outputs["y"].relative_error < 0.5
    json.dumps(bad.as_dict(), allow_nan=False)


@pytest.mark.parametrize("shape", ["[n]", "[n,1]", "[n,4,1]"])
def test_one_probability_is_judged_by_its_answer(shape: str, tmp_path: Path) -> None:
    """Of 0.001 the relative error says nothing, of a vector of one value the cosine."""
    text = {
        "[n]": "s = ReduceSum<keepdims = 0>(y0, both)", "[n,1]": "r = ReduceSum<keepdims = 0>(y0, last)\n"
        "s = ReduceSum<keepdims = 1>(r, last)", "[n,4,1]": "s = ReduceSum<keepdims = 1>(y0, last)",
    }[shape]  # fmt: skip
    proto = model(f"""g (float[n,4,8] x) => (float{shape} p) {{
      n0 = LayerNormalization<axis = -1>(x, w)
      y0 = MatMul(n0, lin)
      {text}
      p = Sigmoid(s)
    }}""", {"w": np.ones(C, np.float32), "lin": LIN, "both": np.array([1, 2]), "last": np.array([-1])})  # fmt: skip
    used = [value for value in proto.graph.initializer if value.name in {i for n in proto.graph.node for i in n.input}]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(used)
    _, report = converted(proto, tmp_path, method="fit")
    assert report.validation is not None
    found = report.validation.outputs["p"]
    assert found.classes == "probability" and found.class_agreement is not None and found.cosine is None

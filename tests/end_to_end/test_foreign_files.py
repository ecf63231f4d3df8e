"""Files as others write them: what is unusual in them is converted rightly, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dynorm_onnx import convert_model
from dynorm_onnx.convert import main
from dynorm_onnx.errors import DataError, ModelError, NoSiteError
from dynorm_onnx.report import Report
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import make_session
from tests.tolerances import relative_error

C = 8
RNG = np.random.default_rng(0)
LIN = (0.5 * RNG.normal(size=(C, C))).astype(np.float32)
DATA = [{"x": np.random.default_rng(i).normal(size=(2, 4, C)).astype(np.float32)} for i in range(12)]
X = DATA[0]["x"]


def model(
    text: str, weights: dict[str, np.ndarray], *, ir_version: int = 10, opset: int = 17, others: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """A model from ONNX's text form; `weights` become initializers, of the inputs that `text` names too."""
    domains = "".join(f', "{domain}" : 1' for domain in others)
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}{domains}]>\n'
    made = onnx.parser.parse_model(head + text)
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return made


def converted(proto: onnx.ModelProto, folder: Path, **knobs: Any) -> tuple[Path, Report]:
    source, output = folder / "model.onnx", folder / "converted.onnx"
    onnx.save(proto, source)
    return output, convert_model(source, output=output, time=False, **{"data": DATA, **knobs})


def outputs(path: Path | onnx.ModelProto, **feeds: np.ndarray) -> dict[str, Any]:
    return run(make_session(path), feeds)


OVERRIDABLE = """
g (float[n,4,8] x, float[8] w) => (float[n,4,8] y) {
  h = MatMul(x, lin)
  y0 = LayerNormalization<axis = -1>(h, w)
  y = MatMul(y0, lin)
}"""
OVERRIDABLE_EPSILON = """
g (float[n,4,8] x, float eps) => (float[n,4,8] y) {
  h = MatMul(x, lin)
  squares = Mul(h, h)
  mean = ReduceMean<axes = [-1]>(squares)
  stable = Add(mean, eps)
  root = Sqrt(stable)
  y0 = Div(h, root)
  y = MatMul(y0, lin)
}"""
OVERRIDABLE_LINEAR = """
g (float[n,4,8] x, float[8,8] lin, float[8] lin_bias) => (float[n,4,8] y) {
  h0 = MatMul(x, lin)
  h = Add(h0, lin_bias)
  y0 = LayerNormalization<axis = -1>(h, w)
  y = MatMul(y0, lin)
}"""


@pytest.mark.parametrize(("text", "fed"), [
    (OVERRIDABLE, {"w": RNG.normal(size=C)}),
    (OVERRIDABLE_EPSILON, {"eps": np.array(2.0)}),
    (OVERRIDABLE_LINEAR, {"lin": RNG.normal(size=(C, C)), "lin_bias": RNG.normal(size=C)}),
])  # fmt: skip
def test_another_value_may_be_fed_for_what_an_input_holds_by_default(
    text: str, fed: dict[str, np.ndarray], tmp_path: Path
) -> None:
    weights = {"w": np.ones(C, np.float32), "eps": np.array(1e-5, np.float32), "lin": LIN,
               "lin_bias": np.ones(C, np.float32)}  # fmt: skip
    proto = model(text, {name: array for name, array in weights.items() if name in text})
    try:
        output, _ = converted(proto, tmp_path, to="rmsnorm")
    except NoSiteError:
        return  # nothing was changed
    fed = {name: array.astype(np.float32) for name, array in fed.items()}
    for feeds in ({}, fed):
        assert relative_error(outputs(output, x=X, **feeds)["y"], outputs(proto, x=X, **feeds)["y"]) < 1e-5
    assert converted(proto, tmp_path)[1].validation is not None


def test_before_ir_4_every_initializer_is_an_input_and_a_constant(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    text = """
    g (float[n,4,8] x, float[8,8] lin) => (float[n,4,8] y) {
      h = MatMul(x, lin)
      squares = Mul(h, h)
      mean = ReduceMean<axes = [-1]>(squares)
      root = Sqrt(mean)
      y0 = Div(h, root)
      y = MatMul(y0, lin)
    }"""
    proto = model(text, {"lin": LIN}, ir_version=3, opset=9)
    for knobs in ({"to": "rmsnorm"}, {}):
        output, report = converted(proto, tmp_path, **knobs)
        written = onnx.load(output)
        assert written.ir_version >= 4 and [value.name for value in written.graph.input] == ["x"]
        capfd.readouterr()
        make_session(output, log_severity=2)
        assert "initializer" not in capfd.readouterr().err.lower()
        assert report.validation is not None
    assert (
        relative_error(outputs(converted(proto, tmp_path, to="rmsnorm")[0], x=X)["y"], outputs(proto, x=X)["y"]) < 1e-5
    )


CONSTANT_INPUTS = {
    "initializer": "q0 = Identity(queries)\nq = LayerNormalization<axis = -1>(q0, w)",
    "sum": "q0 = Add(queries, queries)\nq = LayerNormalization<axis = -1>(q0, w)",
    "default of an input": "q0 = Mul(given, given)\nq = LayerNormalization<axis = -1>(q0, w)",
    "sum inside": "q = com.microsoft.SkipSimplifiedLayerNormalization(queries, queries, w)",
    "weight that varies": "v = ReduceMean<axes = [0, 1], keepdims = 0>(x)\n"
    "q = com.microsoft.SkipSimplifiedLayerNormalization(queries, queries, v)",
}


@pytest.mark.parametrize("made", CONSTANT_INPUTS.values(), ids=list(CONSTANT_INPUTS))
def test_a_norm_of_what_is_the_same_in_every_run_is_kept(made: str, tmp_path: Path) -> None:
    text = f"""
    g (float[n,4,8] x, float[1,4,8] given) => (float[n,4,8] y) {{
      {made}
      h = Add(x, q)
      y = LayerNormalization<axis = -1>(h, w)
    }}"""
    queries = RNG.normal(size=(1, 4, C)).astype(np.float32)
    weights = {"queries": queries, "w": np.ones(C, np.float32), "given": queries}
    output, report = converted(model(text, weights, others=("com.microsoft",)), tmp_path)
    assert [node.op_type for node in onnx.load(output).graph.node].count("DyISRU") == 1
    (kept,) = [site for site in report.sites if site.status == "kept"]
    assert kept.name == "q" and kept.reason == "its input is the same in every run"
    alone = text.replace("y = LayerNormalization<axis = -1>(h, w)", "y = Identity(h)")
    with pytest.raises(NoSiteError, match=r"the same in every run \(q\)"):
        converted(model(alone, weights, others=("com.microsoft",)), tmp_path)


@pytest.mark.parametrize("noise", ["RandomNormal<shape = [1, 4, 8], seed = 1.0>()", "RandomUniformLike(queries)"])
def test_a_norm_of_noise_is_calibrated_on_noise(noise: str, tmp_path: Path) -> None:
    text = f"""
    g (float[n,4,8] x) => (float[n,4,8] y) {{
      noise = {noise}
      h0 = Add(noise, queries)
      q = LayerNormalization<axis = -1>(h0, w)
      h = Add(x, q)
      y = LayerNormalization<axis = -1>(h, w)
    }}"""
    weights = {"queries": np.zeros((1, 4, C), np.float32), "w": np.ones(C, np.float32)}
    output, report = converted(model(text, weights), tmp_path)
    assert sum(node.domain == "dynorm" for node in onnx.load(output).graph.node) == 2
    assert all(site.status == "converted" for site in report.sites)


def test_outputs_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    text = """
    g (float[n,4,8] x) => (float[n,4,8] y, int64[n,4] ids, seq(float[n,4,8]) parts, optional(float[n,4,8]) maybe) {
      y = LayerNormalization<axis = -1>(x, w)
      ids = ArgMax<axis = -1, keepdims = 0>(y)
      parts = SequenceConstruct(y, x)
      maybe = Optional(y)
    }"""
    proto = model(text, {"w": np.ones(C, np.float32)}, opset=18)
    for to in ("rmsnorm", "dyisru"):
        _, report = converted(proto, tmp_path, to=to)
        assert any("not compared" in line and "ids (int64), parts (a sequence)" in line for line in report.warnings)
        assert report.validation is not None and "y" in report.validation.outputs


def test_maps_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = "g (float[n,4,8] x) => (float[n,8] pooled) { y = LayerNormalization<axis = -1>(x, w)\n"
    proto = model(text + "pooled = ReduceMean<axes = [1], keepdims = 0>(y) }", {"w": np.ones(C, np.float32)})
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    proto.graph.node.append(
        helper.make_node("ZipMap", ["pooled"], ["z"], domain="ai.onnx.ml", classlabels_int64s=list(range(C)))
    )
    mapped = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    proto.graph.output.append(helper.make_value_info("z", helper.make_sequence_type_proto(mapped)))
    onnx.save(proto, tmp_path / "model.onnx")
    assert main([str(tmp_path / "model.onnx"), "-q"]) == 2
    assert "'z' is a map or holds maps" in capsys.readouterr().err


@pytest.mark.parametrize("pairs", [False, True], ids=["flat indices", "indices by axis"])
@pytest.mark.parametrize("node", [False, True], ids=["initializer", "Constant"])
def test_sparse_tensors_become_dense(pairs: bool, node: bool, tmp_path: Path) -> None:
    text = """
    g (float[n,4,8] x) => (float[n,4,8] y) {
      h = MatMul(x, lin)
      y = LayerNormalization<axis = -1>(h, w)
    }"""
    sparse = np.where(np.abs(LIN) > 0.4, LIN, 0)
    places = np.argwhere(sparse) if pairs else np.flatnonzero(sparse)
    values = numpy_helper.from_array(sparse[sparse != 0], "lin")
    tensor = helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64), "at"), sparse.shape)
    proto = model(text, {"w": np.ones(C, np.float32)})
    dense = model(text, {"w": np.ones(C, np.float32), "lin": sparse})
    if node:
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["lin"], sparse_value=tensor))
    else:
        proto.graph.sparse_initializer.append(tensor)
    output, _ = converted(proto, tmp_path, to="rmsnorm")
    assert relative_error(outputs(output, x=X)["y"], outputs(dense, x=X)["y"]) < 1e-5
    assert converted(proto, tmp_path)[1].validation is not None


def test_a_sparse_tensor_with_a_place_outside_it_is_named(tmp_path: Path) -> None:
    proto = model("g (float[n,4,8] x) => (float[n,4,8] y) { y = MatMul(x, lin) }", {})
    values, places = np.ones(1, np.float32), np.array([99], np.int64)
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(
        numpy_helper.from_array(values, "lin"), numpy_helper.from_array(places, "at"), (C, C)
    ))  # fmt: skip
    with pytest.raises(ModelError, match=r"sparse tensor 'lin' of shape \[8, 8\] cannot be read"):
        converted(proto, tmp_path)


NORMED = "g (float[n,4,8] x) => (float[n,4,8] y) { y = LayerNormalization<axis = -1>(x, w, b) }"


@pytest.mark.parametrize(("broken", "value", "said"), [
    ("w", np.nan, "y: its weight 'w' is nan in channel 3"), ("b", np.inf, "y: its bias 'b' is inf in channel 3"),
])  # fmt: skip
def test_what_is_not_finite_in_a_norm_is_named(broken: str, value: float, said: str, tmp_path: Path) -> None:
    weights = {"w": np.ones(C, np.float32), "b": np.zeros(C, np.float32)}
    weights[broken][3] = value
    with pytest.raises(ModelError, match=said):
        converted(model(NORMED, weights), tmp_path)
    output, _ = converted(model(NORMED, weights), tmp_path, to="rmsnorm")
    found, expected = outputs(output, x=X)["y"], outputs(model(NORMED, weights), x=X)["y"]
    assert np.array_equal(np.isfinite(found), np.isfinite(expected))


def test_data_without_a_finite_token_is_refused_at_the_norm(tmp_path: Path) -> None:
    weights = {"w": np.ones(C, np.float32), "b": np.zeros(C, np.float32)}
    broken = [{"x": np.full((2, 4, C), np.nan, np.float32)} for _ in range(12)]
    with pytest.raises(DataError, match="y: no token of the calibration data is finite"):
        converted(model(NORMED, weights), tmp_path, data=broken)


FREE = """
g (float[N,C] x) => (float[N,C] z) {
  m1 = ReduceMean<axes = [-1]>(x)
  d1 = Sub(x, m1)
  s1 = Mul(d1, d1)
  v1 = ReduceMean<axes = [-1]>(s1)
  e1 = Add(v1, eps)
  r1 = Sqrt(e1)
  y1 = Div(d1, r1)
  z1 = MatMul(y1, lin)
  m2 = ReduceMean<axes = [-1]>(z1)
  d2 = Sub(z1, m2)
  s2 = Mul(d2, d2)
  v2 = ReduceMean<axes = [-1]>(s2)
  e2 = Add(v2, eps)
  r2 = Sqrt(e2)
  y2 = Div(d2, r2)
  z = MatMul(y2, lin)
}"""


@pytest.mark.parametrize("method", ["fit", "reconstruct"])
@pytest.mark.parametrize("given", [True, False], ids=["data", "drawn"])
def test_channels_that_only_a_weight_tells(method: str, given: bool, tmp_path: Path) -> None:
    proto = model(FREE, {"lin": LIN, "eps": np.array(1e-5, np.float32)})
    data = [{"x": feeds["x"][0]} for feeds in DATA] if given else "random"
    output, report = converted(proto, tmp_path, method=method, data=data)
    assert [node.op_type for node in onnx.load(output).graph.node].count("DyISRU") == 2
    assert np.isfinite(outputs(output, x=X[0])["z"]).all() and report.validation is not None


def test_without_data_a_model_that_writes_no_text_is_not_guessed_at(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(model(NORMED, {"w": np.ones(C, np.float32), "b": np.zeros(C, np.float32)}), source)
    assert main([str(source), "-q", "--no-time"]) == 2
    said = capsys.readouterr().err
    assert "--data (x: float32 [n, 4, 8])" in said and "--data random" in said
    assert not (tmp_path / "model.dyisru.onnx").exists()
    assert main([str(source), "-q", "--no-time", "--to", "rmsnorm"]) == 0
    assert main([str(source), "-q", "--no-time", "--data", "random"]) == 0
    assert "calibrated on random inputs" in "".join(capsys.readouterr())


@pytest.mark.parametrize("end", ["y = LayerNormalization<axis = -1>(x, w1500)", "y = MatMul(y0, w1500)"])
def test_a_weight_behind_a_long_chain_of_constants(end: str, tmp_path: Path) -> None:
    """As tracers leave them; Python's stack has room for 1,000 calls."""
    links = "\n".join(f"w{place + 1} = Add(w{place}, zero)" for place in range(1500))
    norm = "" if "LayerNormalization" in end else "y0 = LayerNormalization<axis = -1>(x, w)"
    text = f"g (float[n,4,8] x) => (float[n,4,8] y) {{\n{links}\n{norm}\n{end}\n}}"
    weights = {"w0": LIN if norm else np.linspace(0.5, 2, C, dtype=np.float32), "zero": np.zeros(1, np.float32)}
    proto = model(text, weights | ({"w": np.ones(C, np.float32)} if norm else {}))
    output, _ = converted(proto, tmp_path, to="rmsnorm")
    assert relative_error(outputs(output, x=X)["y"], outputs(proto, x=X)["y"]) < 1e-5
    assert [site.status for site in converted(proto, tmp_path)[1].sites] == ["converted"]


def test_a_file_that_onnx_runtime_crashes_on_is_refused_or_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """1.32 does as it fuses a LayerNormalization whose bias is named and left out."""
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float[n,4,8] x, float[8,8] a) => (float[n,4,8] y) {
            p = MatMul(x, a) q = LayerNormalization(p, w, ) y = MatMul(q, a) }"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.linspace(1, 2, 8, dtype=np.float32), "w"))
    onnx.save(proto, tmp_path / "model.onnx")
    status = main([str(tmp_path / "model.onnx"), "-o", str(tmp_path / "out.onnx"), "--data", "random", "--no-time"])
    said = capsys.readouterr().err
    assert (status == 0) == (tmp_path / "out.onnx").exists()
    assert status == 0 or (status == 2 and "crashes (SIG" in said), said

"""Files of published packages: what their authors left unsaid about samples, states and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dynorm_onnx import convert_model
from dynorm_onnx.calibration.data import signature
from dynorm_onnx.calibration.data.trial import is_for_one_sample
from dynorm_onnx.errors import DataError
from dynorm_onnx.graph.values.output_kind import output_kinds
from dynorm_onnx.report import Report
from dynorm_onnx.runtime.session import FATAL, Optimization, make_session
from tests.end_to_end.test_foreign_files import LIN, C, converted, model, outputs
from tests.tolerances import relative_error

RNG = np.random.default_rng(1)
WEIGHTS = {"lin": LIN, "w": (1 + 0.3 * RNG.normal(size=C)).astype(np.float32), "b": LIN[0]}
SIZES = {"one": np.array([1], np.int64), "eight": np.array([C], np.int64), "token": LIN[:1, None]}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def proto_of(text: str, **more: np.ndarray) -> onnx.ModelProto:
    weights = WEIGHTS | SIZES | more
    return model(text, {name: array for name, array in weights.items() if name in text.replace(",", " ")})


def is_well_converted(report: Report) -> bool:
    """Far better than nothing: the little data here fits no better."""
    assert report.validation is not None
    errors = [error.relative_error for error in report.validation.outputs.values()]
    return all(site.status == "converted" for site in report.sites) and max(errors) < 0.8


# ------------------------------------------------------------------------------------------------- samples held out

ONE_ROW = """
g (float[1,8] x) => (float[1,8] y) {
  h = MatMul(x, lin)
  n = LayerNormalization<axis = -1>(h, w, b)
  y = MatMul(n, lin)
}"""
ONE_TOKEN_A_BATCH = """
g (float[2,4] x) => (float[2,4] y) {
  flat = Reshape(x, eight)
  h = MatMul(flat, lin)
  n = LayerNormalization<axis = -1>(h, w, b)
  y = Reshape(n, back)
}"""


@pytest.mark.parametrize(("text", "shape"), [(ONE_ROW, (1, 8)), (ONE_TOKEN_A_BATCH, (2, 4))])
def test_a_norm_with_one_token_in_every_batch(text: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    proto = proto_of(text, back=np.array(shape, np.int64))
    data = [{"x": normal(*shape, seed=seed)} for seed in range(60)]
    _, report = converted(proto, tmp_path, data=data)
    assert is_well_converted(report)
    assert report.sites[0].held_out_error is not None, "whole batches choose, and others are solved with"


# ------------------------------------------------------------------------------------------- samples that go alone

RESHAPED = """
g (float[batch,seq,8] x) => (float[1,seq,8] y) {
  h = MatMul(x, lin)
  n = LayerNormalization<axis = -1>(h, w, b)
  s = Shape<start = 1, end = 2>(x)
  shape = Concat<axis = 0>(one, s, eight)
  r = Reshape(n, shape)
  y = MatMul(r, lin)
}"""
CLASS_TOKEN = """
g (float[batch,seq,8] x) => (float[batch,more,8] y) {
  h = MatMul(x, lin)
  t = Concat<axis = 1>(token, h)
  n = LayerNormalization<axis = -1>(t, w, b)
  y = MatMul(n, lin)
}"""
ATTENDED = """
g (float[batch,seq,8] x) => (float[1,tokens,8] y) {
  long = Reshape(x, stretched)
  turned = Transpose<perm = [0, 2, 1]>(long)
  scores = MatMul(long, turned)
  shares = Softmax<axis = -1>(scores)
  h = MatMul(shares, long)
  n = LayerNormalization<axis = -1>(h, w, b)
  y = MatMul(n, lin)
}"""


def given(kind: str, arrays: list[dict[str, np.ndarray]], folder: Path) -> Any:
    """The same samples as a list, one .npz or a folder of them."""
    if kind == "list":
        return arrays
    if kind == "npz":
        np.savez(folder / "data.npz", **{name: np.concatenate([a[name] for a in arrays]) for name in arrays[0]})
        return folder / "data.npz"
    (folder / "data").mkdir()
    for number, feeds in enumerate(arrays):
        np.savez(folder / "data" / f"{number:03}.npz", **feeds)
    return folder / "data"


@pytest.mark.parametrize("kind", ["list", "npz", "folder", "random"])
@pytest.mark.parametrize("text", [RESHAPED, CLASS_TOKEN, ATTENDED], ids=["reshape", "class token", "attention"])
def test_samples_that_cannot_be_joined_are_run_one_by_one(
    text: str, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    proto = proto_of(text, stretched=np.array([1, -1, C], np.int64))
    data = "random" if kind == "random" else given(kind, [{"x": normal(1, 5, C, seed=s)} for s in range(24)], tmp_path)
    _, report = converted(proto, tmp_path, data=data, max_length=6, samples=40)
    assert is_well_converted(report)
    assert report.calibration is not None and report.calibration.samples == (40 if kind == "random" else 20)
    assert "onnxruntime" not in capfd.readouterr().err, "the trial is silent"
    exact = converted(proto, tmp_path, to="rmsnorm", data=data)[0]
    x = normal(1, 5, C, seed=99)
    assert relative_error(outputs(exact, x=x)["y"], outputs(proto, x=x)["y"]) < 1e-5


NOISY = """
g (float[batch,seq,8] x) => (float[batch,seq,8] y) {
  noise = RandomNormalLike(x)
  h = Add(x, noise)
  y = LayerNormalization<axis = -1>(h, w, b)
}"""
ALIKE = """
g (float[batch,seq,8] x) => (float[batch,seq,8] y, float[1] worst) {
  y = LayerNormalization<axis = -1>(x, w, b)
  worst = ReduceMax<axes = [0, 1, 2], keepdims = 1>(y)
}"""


@pytest.mark.parametrize(("text", "alone"), [
    (RESHAPED, True), (CLASS_TOKEN, True), (ATTENDED, True), (NOISY, False), (ALIKE, False),
])  # fmt: skip
def test_two_samples_are_tried_together(text: str, alone: bool) -> None:
    proto = proto_of(text, stretched=np.array([1, -1, C], np.int64))
    what = signature(ir.from_proto(proto))
    batches = [{"x": normal(4, 5, C)}, {"x": normal(1, 5, C)}]

    def opened(optimization: Optimization) -> Any:
        return make_session(proto, optimization=optimization, log_severity=FATAL)

    assert is_for_one_sample(opened, batches, what) == alone
    assert not is_for_one_sample(opened, batches[1:], what), "there are no two to try"


# ------------------------------------------------------------------------------------------------ states and caches

FIXED_CACHE = """
g (float[1,4,8] x, float[3,1,4,8] state_cache) => (float[1,4,8] y, float[3,1,4,8] state_cache_out) {
  h = MatMul(x, lin)
  n = LayerNormalization<axis = -1>(h, w, b)
  y = MatMul(n, lin)
  state_cache_out = Add(state_cache, y)
}"""


@pytest.mark.parametrize("kind", ["list", "folder"])
@pytest.mark.parametrize("cache", [(3, 1, 4, 8), (2, 3, 1, 4, 8), (3, 4, 8)])
def test_feeds_of_exactly_the_sizes_of_a_model_are_one_sample_each(
    cache: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    proto = proto_of(FIXED_CACHE.replace("3,1,4,8", ",".join(map(str, cache))))
    samples = [{"x": normal(1, 4, C, seed=s), "state_cache": normal(*cache, seed=100 + s)} for s in range(24)]
    data = given(kind, samples, tmp_path)
    assert is_well_converted(converted(proto, tmp_path, data=data)[1])
    output, report = converted(proto, tmp_path, to="rmsnorm", data=data)
    assert report.validation is not None and report.validation.samples == 4
    for name, array in outputs(output, **samples[0]).items():
        assert relative_error(array, outputs(proto, **samples[0])[name]) < 1e-5


def test_caches_may_lack_and_be_cut_where_one_axis_can_count_their_samples(tmp_path: Path) -> None:
    proto = proto_of(FIXED_CACHE)
    assert is_well_converted(converted(proto, tmp_path, data=[{"x": normal(1, 4, C, seed=s)} for s in range(24)])[1])
    np.savez(tmp_path / "many.npz", x=normal(24, 4, C), state_cache=normal(3, 24, 4, C))
    calibration = converted(proto, tmp_path, data=tmp_path / "many.npz")[1].calibration
    assert calibration is not None and calibration.samples == 20
    np.savez(tmp_path / "many.npz", x=normal(24, 4, C), state_cache=normal(3, 23, 4, C))
    with pytest.raises(DataError, match="24 of 'x', 23 of 'state_cache'"):
        converted(proto, tmp_path, data=tmp_path / "many.npz")


STATES = """
g (float[batch,seq,8] x, float[2,batch,8] h0) => (float[batch,more,8] y, float[2,batch,8] hN) {
  axes = Constant<value_ints = [1]>()
  first = Gather<axis = 0>(h0, zero)
  wide = Unsqueeze(first, axes)
  h = MatMul(x, lin)
  s = Concat<axis = 1>(wide, h)
  n = LayerNormalization<axis = -1>(s, w, b)
  y = MatMul(n, lin)
  hN = Identity(h0)
}"""
TIME_FIRST = """
g (float[seq,batch,8] x, float[2,batch,8] h0) => (float[more,batch,8] y) {
  axes = Constant<value_ints = [0]>()
  first = Gather<axis = 0>(h0, zero)
  wide = Unsqueeze(first, axes)
  h = MatMul(x, lin)
  s = Concat<axis = 0>(wide, h)
  n = LayerNormalization<axis = -1>(s, w, b)
  y = MatMul(n, lin)
}"""


@pytest.mark.parametrize("to", ["dyisru", "rmsnorm"])
@pytest.mark.parametrize("drawn", [False, True], ids=["given", "drawn"])
@pytest.mark.parametrize(("text", "axis"), [(STATES, 0), (TIME_FIRST, 1)], ids=["batch first", "time first"])
def test_states_have_their_samples_where_the_name_of_the_batch_stands(
    text: str, axis: int, drawn: bool, to: str, tmp_path: Path
) -> None:
    proto = proto_of(text, zero=np.array(0, np.int64))
    shape = (1, 4, C) if axis == 0 else (4, 1, C)
    samples = [{"x": normal(*shape, seed=s), "h0": normal(2, 1, C, seed=50 + s)} for s in range(24)]
    data: Any = None if to == "rmsnorm" else "random"
    _, report = converted(proto, tmp_path, to=to, data=data if drawn else samples, samples=40, max_length=6)
    assert report.validation is not None
    if to == "dyisru":
        assert report.calibration is not None and report.calibration.samples == (40 if drawn else 20)
    assert report.validation.outputs["y"].relative_error < (0.8 if to == "dyisru" else 1e-5)


# ---------------------------------------------------------------------------------------- scores, or a vector

BODY = """
g (float[n,t,16] x) => (float[n,K] "461") {{
  h = MatMul(x, lin)
  l = LayerNormalization<axis = -1>(h, w, b)
  {end}
}}"""
ENDS: dict[str, tuple[str, str | None]] = {
    "pooled": ('"461" = ReduceMean<axes = [1], keepdims = 0>(l)', "vector"),
    "first token": ('"461" = Gather<axis = 1>(l, zero)', "vector"),
    "pooled and normalised": (
        'p = ReduceMean<axes = [1], keepdims = 0>(l)\nq = MatMul(p, wide)\n'
        'r = ReduceL2<axes = [1]>(q)\n"461" = Div(q, r)',
        "vector",
    ),
    "normalised by roots": (
        'p = ReduceMean<axes = [1], keepdims = 0>(l)\nq = MatMul(p, wide)\ns = Mul(q, q)\n'
        'ss = ReduceSum(s, axes)\nr = Sqrt(ss)\nc = Max(r, tiny)\n"461" = Div(q, c)',
        "vector",
    ),
    "pooler": (
        'f = Gather<axis = 1>(l, zero)\nq = Gemm(f, wide, bias)\n"461" = Tanh(q)', "vector",
    ),
    "softmax": (
        'f = Gather<axis = 1>(l, zero)\nq = Gemm(f, wide, bias)\n"461" = Softmax<axis = -1>(q)', "classes",
    ),
    "softmax by hand": (
        'f = Gather<axis = 1>(l, zero)\nq = Gemm(f, wide, bias)\n'
        'e = Exp(q)\nss = ReduceSum(e, axes)\n"461" = Div(e, ss)',
        "classes",
    ),
    "means of maps of classes": (
        'q0 = MatMul(l, wide)\nq = Add(q0, bias)\n"461" = ReduceMean<axes = [1], keepdims = 0>(q)', None,
    ),
    "linear": ('f = Gather<axis = 1>(l, zero)\n"461" = Gemm(f, wide, bias)', None),
}  # fmt: skip


def headed(end: str, *, extra: str = "") -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    weights = {
        "lin": rng.normal(size=(16, 16)) / 4, "w": 1 + rng.normal(size=16) / 4, "b": rng.normal(size=16) / 10,
        "wide": rng.normal(size=(16, 24)) / 4, "bias": rng.normal(size=24) / 10, "tiny": np.array(1e-9),
    }  # fmt: skip
    text = BODY.format(end=end).replace('"461"', "made")
    text = text.replace("(float[n,K] made)", f"(float[n,K] made{extra})")
    proto = model(text, {name: array.astype(np.float32) for name, array in weights.items()})
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int64), "zero"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "axes"))
    for node in proto.graph.node:  # the text form takes no names that are numbers
        for names in (node.input, node.output):
            names[:] = ["461" if name == "made" else name for name in names]
    proto.graph.output[0].name = "461"
    return proto


@pytest.mark.parametrize(("end", "kind"), ENDS.values(), ids=list(ENDS))
def test_what_the_graph_tells_of_an_output_without_a_name(end: str, kind: str | None, tmp_path: Path) -> None:
    proto = headed(end)
    onnx.checker.check_model(proto)
    assert output_kinds(ir.from_proto(proto).graph).get("461") == kind
    coupled = 2 if end == ENDS["first token"][0] else 0
    data = [{"x": normal(2, 6, 16, seed=s) + normal(2, 1, 16, seed=100 + s)} for s in range(60)]
    output, report = converted(proto, tmp_path, data=data, coupled=coupled)
    assert output_kinds(ir.load(output).graph).get("461") == kind
    assert report.validation is not None
    error = report.validation.outputs["461"]
    assert error.classes == ("scores" if kind == "classes" else None)
    assert report.verdict is not None and (error.classes is not None or report.verdict.usable)


@pytest.mark.parametrize(("reader", "kind"), [
    ("ids = ArgMax<axis = 1, keepdims = 0>(made)", "classes"),
    ("t = Div(made, temperature)\nids = Softmax<axis = -1>(t)", "classes"),
    ("ids = Sigmoid(made)", "classes"),
    ("gate = Sigmoid(made)\nids = Mul(made, gate)", None),
])  # fmt: skip
def test_what_reads_an_output_tells_too(reader: str, kind: str | None) -> None:
    end = ENDS["linear"][0].replace('"461"', "made") + "\n" + reader
    kind_of_ids = "int64[n]" if "ArgMax" in reader else "float[n,K]"
    proto = headed(end, extra=f", {kind_of_ids} ids")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2, np.float32), "temperature"))
    assert output_kinds(ir.from_proto(proto).graph).get("461") == kind


def test_few_columns_are_classes_where_nothing_tells(tmp_path: Path) -> None:
    proto = headed(ENDS["linear"][0])
    for tensor in proto.graph.initializer:
        if tensor.name in ("wide", "bias"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)[..., :3], tensor.name))
    data = [{"x": normal(2, 6, 16, seed=s)} for s in range(60)]
    onnx.save(proto, tmp_path / "model.onnx")
    report = convert_model(tmp_path / "model.onnx", data=data, time=False)
    assert report.validation is not None and report.validation.outputs["461"].classes == "scores"

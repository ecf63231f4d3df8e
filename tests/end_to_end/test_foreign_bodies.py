"""Norms in bodies of If, Loop and Scan, at every depth: rewritten exactly, or replaced by what was fitted to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from dynorm_onnx.convert import main
from dynorm_onnx.errors import DataError, NoSiteError, UsageError
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.paper.real_model import compare_on_model
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import make_session
from tests.builders import holders
from tests.builders.graph import Graph
from tests.end_to_end.test_foreign_files import DATA, LIN, RNG, C, X, converted, model, outputs
from tests.tolerances import relative_error

WEIGHTS = {"w": np.linspace(0.5, 2, C, dtype=np.float32), "b": RNG.normal(size=C).astype(np.float32), "lin": LIN,
           "eps": np.array(1e-3, np.float32), "two": np.array(2, np.int64)}  # fmt: skip
PIECES = """
    {x}_q = Mul({x}, {x})
    {x}_m = ReduceMean<axes = [-1]>({x}_q)
    {x}_e = Add({x}_m, eps)
    {x}_r = Sqrt({x}_e)
    {x}_d = Div({x}, {x}_r)
    {y} = Mul({x}_d, w)"""
NODE = "{y} = LayerNormalization<axis = -1>({x}, w, b)"
SKIP = "{y} = com.microsoft.SkipLayerNormalization({x}, outside, w, b)"
ONE_STEP = "norm_of_{x} = SimplifiedLayerNormalization<axis = -1>({x}, w) {y} = Add(norm_of_{x}, outside)"


def in_if(norm: str) -> str:
    return f"""
    sum = ReduceSum<keepdims = 0>(x)
    zero = Sub(sum, sum)
    flag = Greater(sum, zero)
    y0 = If(flag)<
      then_branch = t () => (float[n,4,8] t_y) {{ t_x = MatMul(outside, lin) {norm.format(x="t_x", y="t_y")} }},
      else_branch = e () => (float[n,4,8] e_y) {{ {norm.format(x="outside", y="e_n")} e_y = Neg(e_n) }}
    >"""


def in_loop(norm: str) -> str:
    return f"""
    yes = Constant<value_int = 1>()
    go = Cast<to = 9>(yes)
    y0, rows = Loop(two, go, outside)<
      body = l (int64 step, bool going, float[n,4,8] h) => (bool on, float[n,4,8] l_y, float[n,4,8] l_row) {{
        on = Identity(going)
        l_x = MatMul(h, lin)
        {norm.format(x="l_x", y="l_y")}
        l_row = Neg(l_y)
      }}
    >"""


def in_scan(norm: str) -> str:
    return f"""
    state = ReduceMean<axes = [0], keepdims = 0>(outside)
    last, y0 = Scan(state, x)<
      num_scan_inputs = 1,
      body = s (float[4,8] s_h, float[4,8] s_row) => (float[4,8] s_next, float[4,8] s_y) {{
        s_x = Add(s_h, s_row)
        {norm.replace("outside", "s_row").format(x="s_x", y="s_y")}
        s_next = Identity(s_y)
      }}
    >"""


def nested(norm: str) -> str:
    """A norm in a branch of an If within a Loop; its weights come from the main graph."""
    return f"""
    yes = Constant<value_int = 1>()
    go = Cast<to = 9>(yes)
    y0 = Loop(two, go, outside)<
      body = l (int64 step, bool going, float[n,4,8] h) => (bool on, float[n,4,8] l_y) {{
        on = Identity(going)
        nought = Constant<value_int = 0>()
        first = Equal(step, nought)
        l_y = If(first)<
          then_branch = t () => (float[n,4,8] t_y) {{ t_x = MatMul(h, lin) {norm.format(x="t_x", y="t_y")} }},
          else_branch = e () => (float[n,4,8] e_y) {{ e_y = Add(h, outside) }}
        >
      }}
    >"""


PLACES = {"If": (in_if, 2), "Loop": (in_loop, 1), "Scan": (in_scan, 1), "If in Loop": (nested, 1)}
NORMS = {"pieces": PIECES, "node": NODE, "skip": SKIP, "simplified": ONE_STEP}


def held(place: str, norm: str, *, opset: int = 17, after: bool = False) -> onnx.ModelProto:
    """A model with norms in bodies and, `after` them, one in the main graph."""
    body, _ = PLACES[place]
    end = "LayerNormalization<axis = -1>(y0, w, b)" if after else "Neg(y0)"
    text = f"""
    g (float[n,4,8] x) => (float[n,4,8] y) {{
      outside = MatMul(x, lin)
      {body(NORMS[norm])}
      y = {end}
    }}"""
    weights = {name: array for name, array in WEIGHTS.items() if name in text}
    proto = model(text, weights, opset=opset)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def kinds(graph: onnx.GraphProto) -> list[str]:
    """The operators of a graph and of all bodies below it."""
    found = []
    for node in graph.node:
        found.append(node.op_type)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += kinds(attribute.g)
    return found


CANONICAL = {"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("place", PLACES)
def test_norms_in_bodies_become_canonical(place: str, norm: str, tmp_path: Path) -> None:
    proto = held(place, norm, after=True)
    output, report = converted(proto, tmp_path, to="rmsnorm")
    count = PLACES[place][1] + 1
    assert [site.status for site in report.sites] == ["converted"] * count
    written = kinds(onnx.load(output).graph)
    assert sum(kind in CANONICAL for kind in written) == count
    assert not {"Div", "SkipLayerNormalization"} & set(written)
    for x in (X, -X, DATA[1]["x"]):  # either branch of the If
        assert relative_error(outputs(output, x=x)["y"], outputs(proto, x=x)["y"]) < 1e-5


@pytest.mark.parametrize("build", [holders.in_if, holders.in_loop, holders.in_scan])
def test_bodies_of_every_opset(build: Callable[[int], Graph], tmp_path: Path) -> None:
    """Old opsets get the norm as a local function, which a body calls as the main graph does."""
    for opset in (11, 13, 16, 18, 21, 23):
        graph = build(opset)
        proto = graph.model()
        data = [graph.feeds] * 3
        for to, most in (("rmsnorm", 1e-5), ("derf", 0.6)):
            output, report = converted(proto, tmp_path, to=to, data=data)
            assert not report.with_status("refused") and len(report.with_status("converted")) > 0
            found, expected = outputs(output, **graph.feeds), outputs(proto, **graph.feeds)
            assert all(relative_error(found[name], expected[name]) < most for name in expected)
            assert "Sqrt" not in kinds(onnx.load(output).graph)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", ["fit", "reconstruct"])
def test_functions_in_bodies(method: str, place: str, norm: str, tmp_path: Path) -> None:
    """With kernels and without the same numbers; every site with the error of its fit."""
    to = {"fit": "dyisru", "reconstruct": "dyt"}[method]
    proto = held(place, norm, after=True)
    output, report = converted(proto, tmp_path, to=to, method=method)
    count = PLACES[place][1] + 1
    assert [site.status for site in report.sites] == ["converted"] * count
    assert all(site.error is not None and 0 < site.error < 0.6 for site in report.sites)
    written = kinds(onnx.load(output).graph)
    assert sum(kind.endswith(REGISTRY[to].op_type) for kind in written) == count
    assert not (CANONICAL | {"Sqrt"}) & set(written)
    for x in (X, -X):
        found, inlined = outputs(output, x=x)["y"], run(make_session(output, kernels=False), {"x": x})["y"]
        assert relative_error(inlined, found) < 1e-5
        assert 1e-3 < relative_error(found, outputs(proto, x=x)["y"]) < 0.8


POSITIVE = [{"x": feeds["x"] * np.sign(feeds["x"].sum((1, 2), keepdims=True))} for feeds in DATA]


@pytest.mark.parametrize("norm", NORMS)
def test_a_branch_that_was_not_taken_stays(norm: str, tmp_path: Path) -> None:
    proto = held("If", norm, after=True)
    output, report = converted(proto, tmp_path, data=POSITIVE, validate=False)
    assert [site.status for site in report.sites] == ["converted", "converted", "kept"]
    assert str(report.sites[2].reason).startswith("the else_branch of If ")
    assert str(report.sites[2].reason).endswith(" was not taken on the calibration data")
    names = [site.name for site in report.sites]
    output, _ = converted(proto, tmp_path, data=POSITIVE, keep=names[:1])
    x = -POSITIVE[0]["x"]
    assert relative_error(outputs(output, x=x)["y"], outputs(proto, x=x)["y"]) < 1e-5
    assert relative_error(outputs(output, x=-x)["y"], outputs(proto, x=-x)["y"]) > 1e-3


def test_a_body_that_never_ran_stays(tmp_path: Path) -> None:
    proto = held("Loop", "pieces", after=True)
    (two,) = [tensor for tensor in proto.graph.initializer if tensor.name == "two"]
    two.CopyFrom(onnx.numpy_helper.from_array(np.array(0), "two"))
    output, report = converted(proto, tmp_path)
    assert [site.status for site in report.sites] == ["converted", "kept"]
    assert str(report.sites[1].reason).endswith("never ran on the calibration data")
    assert "Sqrt" not in kinds(onnx.load(output).graph)  # exact, in one node
    with pytest.raises(NoSiteError, match=r"no norm is left to replace: l_y: the body of Loop .* never ran"):
        converted(proto, tmp_path, only=["l_y"])


def test_layers_behind_a_body_make_up_for_its_functions(tmp_path: Path) -> None:
    """The norms in the branches are the only ones, and the layer reads them through the If."""
    proto = held("If", "node")
    proto.graph.node[-1].CopyFrom(helper.make_node("MatMul", ["y0", "head"], ["y"]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(LIN.T.copy(), "head"))
    errors = {}
    for method in ("fit", "reconstruct"):
        output, report = converted(proto, tmp_path, method=method, data=MANY)
        assert [site.status for site in report.sites] == ["converted"] * 2
        assert report.changed_initializers == (("head",) if method == "reconstruct" else ())
        fresh = [np.random.default_rng(1000 + seed).normal(size=(2, 4, C)).astype(np.float32) for seed in range(20)]
        pairs = [(outputs(output, x=x)["y"], outputs(proto, x=x)["y"]) for x in fresh]
        errors[method] = relative_error(*(np.concatenate(part) for part in zip(*pairs, strict=True)))
    assert errors["reconstruct"] < 0.98 * errors["fit"]


MANY = [{"x": np.random.default_rng(100 + seed).normal(size=(2, 4, C)).astype(np.float32)} for seed in range(100)]


def test_a_sum_from_around_a_body_stays_outside(tmp_path: Path) -> None:
    """A skip form would take the sum into the branch, or the branch out."""
    text = """
    g (float[n,4,8] x) => (float[n,4,8] y, float[n,4,8] sum) {
      h = MatMul(x, lin)
      sum = Add(h, x)
      total = ReduceSum<keepdims = 0>(x)
      zero = Sub(total, total)
      flag = Greater(total, zero)
      y = If(flag)<
        then_branch = t () => (float[n,4,8] t_y) { t_y = LayerNormalization<axis = -1>(sum, w) },
        else_branch = e () => (float[n,4,8] e_y) { e_y = Neg(sum) }
      >
    }"""
    proto = model(text, {"lin": LIN, "w": WEIGHTS["w"]})
    output, report = converted(proto, tmp_path)
    assert [site.status for site in report.sites] == ["converted"]
    graph = onnx.load(output).graph
    assert "DyISRU" in kinds(graph) and "DyISRU" not in {node.op_type for node in graph.node}
    for x in (X, -X):
        assert relative_error(outputs(output, x=x)["sum"], outputs(proto, x=x)["sum"]) < 1e-6


def test_sizes_that_follow_from_a_norm_in_a_body(tmp_path: Path) -> None:
    """How often the Loop runs follows from its norm; what reads its rows cannot be paired, its own norm need not be."""
    text = """
    g (float[n,4,8] x) => (float[m,8] y) {
      yes = Constant<value_int = 1>()
      go = Cast<to = 9>(yes)
      ten = Constant<value_int = 10>()
      h, rows = Loop(ten, go, x)<
        body = l (int64 step, bool going, float[n,4,8] s) => (bool on, float[n,4,8] l_y, float[8] l_row) {
          l_x = MatMul(s, lin)
          l_y = LayerNormalization<axis = -1>(l_x, w)
          l_row = ReduceMean<axes = [0, 1], keepdims = 0>(l_y)
          size = ReduceL2<keepdims = 0>(l_row)
          on = Greater(size, small)
        }
      >
      y = LayerNormalization<axis = -1>(rows, w)
    }"""
    proto = model(text, {"lin": LIN, "w": WEIGHTS["w"], "small": np.array(0.6, np.float32)})
    for method in ("fit", "reconstruct"):
        _, report = converted(proto, tmp_path, method=method)
        assert [(site.name, site.status) for site in report.sites] == [("y", "kept"), ("l_y", "converted")]
        assert "follows from values (Loop)" in str(report.sites[0].reason)


def test_reshapes_in_a_body_do_not_make_sizes_of_values(tmp_path: Path) -> None:
    text = """
    g (float[n,4,8] x) => (float[n,4,8] y) {
      total = ReduceSum<keepdims = 0>(x)
      zero = Sub(total, total)
      flag = Greater(total, zero)
      y0 = If(flag)<
        then_branch = t () => (float[n,4,8] t_y) {
          t_x = MatMul(x, lin)
          t_n = LayerNormalization<axis = -1>(t_x, w)
          t_r = Reshape(t_n, rows)
          t_s = Shape(t_x)
          t_y = Reshape(t_r, t_s)
        },
        else_branch = e () => (float[n,4,8] e_y) { e_y = Neg(x) }
      >
      y = LayerNormalization<axis = -1>(y0, w)
    }"""
    weights = {"lin": LIN, "w": WEIGHTS["w"], "rows": np.array([-1, C])}
    _, report = converted(model(text, weights), tmp_path)
    assert [site.status for site in report.sites] == ["converted"] * 2


@pytest.mark.parametrize("place", PLACES)
def test_a_bound_keeps_norms_in_bodies_too(place: str, tmp_path: Path) -> None:
    proto = held(place, "node", after=True)
    _, free = converted(proto, tmp_path)
    assert free.validation is not None
    output, report = converted(proto, tmp_path, max_error=0.95 * free.validation.largest_error)
    assert report.with_status("converted") and report.with_status("kept")
    assert all("kept for the bound" in str(site.reason) for site in report.with_status("kept"))
    assert sum(kind in CANONICAL for kind in kinds(onnx.load(output).graph)) == len(report.with_status("kept"))


def test_the_page_shows_norms_in_bodies(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    _, report = converted(held("If in Loop", "pieces", after=True), tmp_path, report=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert all(site.name in page for site in report.sites)


@pytest.mark.parametrize("place", PLACES)
def test_distil_leaves_functions_in_bodies_as_they_were_fitted(place: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    proto = held(place, "pieces", after=True)
    knobs = {"method": "distil", "train": "norms", "learning_rate": 1e-3, "coupled": 0}
    reports = [converted(proto, tmp_path, **knobs, steps=steps)[1] for steps in (1, 4)]
    for first, second in zip(*(report.sites for report in reports), strict=True):
        assert first.status == second.status == "converted"
        assert first.parameters is not None and second.parameters is not None
        same = np.array_equal(first.parameters.weight, second.parameters.weight)
        assert same is (first is not reports[0].sites[0])  # the one in the main graph comes first


def test_patterns_select_norms_in_bodies(tmp_path: Path) -> None:
    proto = held("If", "pieces", after=True)
    names = [site.name for site in converted(proto, tmp_path, to="rmsnorm")[1].sites]
    output, report = converted(proto, tmp_path, to="rmsnorm", keep=(names[1],))
    assert [site.status for site in report.sites if site.name != names[1]] == ["converted"] * 2
    assert kinds(onnx.load(output).graph).count("Sqrt") == 1
    for x in (X, -X):
        assert relative_error(outputs(output, x=x)["y"], outputs(proto, x=x)["y"]) < 1e-5


def test_weights_made_inside_and_computed_outside(tmp_path: Path) -> None:
    text = """
    g (float[n,4,8] x) => (float[n,4,8] y) {
      one_more = Add(w, b)
      sum = ReduceSum<keepdims = 0>(x)
      zero = Sub(sum, sum)
      flag = Greater(sum, zero)
      y = If(flag)<
        then_branch = t () => (float[n,4,8] t_y) {
          t_w = Constant<value_floats = [1.0, 2.0, 0.5, 1.5, 1.0, 3.0, 1.0, 0.25]>()
          t_q = Mul(x, x)
          t_m = ReduceMean<axes = [-1]>(t_q)
          t_e = Add(t_m, eps)
          t_r = Sqrt(t_e)
          t_d = Div(x, t_r)
          t_y = Mul(t_w, t_d)
        },
        else_branch = e () => (float[n,4,8] e_y) { e_y = LayerNormalization<axis = -1>(x, one_more) }
      >
    }"""
    proto = model(text, {name: WEIGHTS[name] for name in ("w", "b", "eps")})
    output, report = converted(proto, tmp_path, to="rmsnorm")
    assert [site.status for site in report.sites] == ["converted"] * 2
    for x in (X, -X):
        assert relative_error(outputs(output, x=x)["y"], outputs(proto, x=x)["y"]) < 1e-5


def test_the_decoder_of_a_search_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    onnx.save(holders.in_beam_search(17).model(), tmp_path / "model.onnx")
    assert main([str(tmp_path / "model.onnx"), "--to", "rmsnorm", "-q"]) == 3
    assert "BeamSearch runs its body in a way of its own" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["float16", "double"])
@pytest.mark.parametrize("place", PLACES)
def test_functions_of_other_types(place: str, kind: str, tmp_path: Path) -> None:
    dtype = np.dtype(kind.replace("double", "float64"))
    body = PLACES[place][0](NODE).replace("float[", f"{kind}[")
    text = f"g ({kind}[n,4,8] x) => ({kind}[n,4,8] y) {{ outside = MatMul(x, lin) {body} y = Neg(y0) }}"
    weights = {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in WEIGHTS.items()}
    proto = model(text, {name: array for name, array in weights.items() if name in text})
    output, report = converted(proto, tmp_path, data=[{"x": feeds["x"].astype(dtype)} for feeds in DATA])
    assert [site.status for site in report.sites] == ["converted"] * PLACES[place][1]
    found = outputs(output, x=X.astype(dtype))["y"]
    assert found.dtype == dtype and 1e-3 < relative_error(found, outputs(proto, x=X.astype(dtype))["y"]) < 0.8


def test_a_distillation_of_functions_that_all_lie_in_bodies(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(UsageError, match="--train norms: all norms lie in bodies"):
        converted(held("Loop", "node"), tmp_path, method="distil", train="norms", steps=2)


def test_the_paper_compares_norms_of_the_main_graph(tmp_path: Path) -> None:
    for after in (False, True):
        onnx.save(held("If", "pieces", after=after), tmp_path / "model.onnx")
        if after:
            assert len(compare_on_model(tmp_path / "model.onnx", data=DATA).sites) == 1
        else:
            with pytest.raises(NoSiteError, match="all norms lie in bodies"):
                compare_on_model(tmp_path / "model.onnx", data=DATA)


def test_a_body_that_sees_no_finite_token_is_named(tmp_path: Path) -> None:
    broken = [{"x": np.full_like(feeds["x"], np.nan)} for feeds in DATA]
    with pytest.raises(DataError, match="l_y: no token of the calibration data is finite"):
        converted(held("Loop", "pieces", after=True), tmp_path, data=broken)

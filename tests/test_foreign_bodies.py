"""Norms in bodies of If, Loop and Scan: rewritten exactly, at every depth; refused where they would be calibrated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from dynorm_onnx.convert import main
from dynorm_onnx.errors import NoSiteError
from tests.builders import holders
from tests.builders.graph import Graph
from tests.test_foreign_files import DATA, LIN, RNG, C, X, converted, model, outputs
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
        output, report = converted(proto, tmp_path, to="rmsnorm", data=data)
        assert not report.with_status("refused") and len(report.with_status("converted")) > 0
        found, expected = outputs(output, **graph.feeds), outputs(proto, **graph.feeds)
        assert all(relative_error(found[name], expected[name]) < 1e-5 for name in expected)
        assert "Sqrt" not in kinds(onnx.load(output).graph)


@pytest.mark.parametrize("place", PLACES)
def test_a_function_is_not_calibrated_in_a_body(place: str, tmp_path: Path) -> None:
    output, report = converted(held(place, "pieces", after=True), tmp_path)
    refused = report.with_status("refused")
    assert len(refused) == PLACES[place][1] and len(report.with_status("converted")) == 1
    for site in refused:
        assert site.reason is not None and "cannot be calibrated, but --to rmsnorm can replace it" in site.reason
    assert relative_error(outputs(output, x=X)["y"], outputs(held(place, "pieces", after=True), x=X)["y"]) < 0.9
    with pytest.raises(NoSiteError, match="--to rmsnorm can replace it"):
        converted(held(place, "pieces"), tmp_path)


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

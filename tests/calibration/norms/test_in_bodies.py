"""What norms in bodies see, run of the body after run, and the functions that are fitted to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from dynorm_onnx.calibration.norms.fit_rows import Leeway, fit_rows
from dynorm_onnx.calibration.norms.in_bodies import seen_in_bodies
from dynorm_onnx.calibration.norms.rows import Rows
from dynorm_onnx.errors import NoSiteError
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.graph.edit.give_out import FLATTEN_OPSET
from dynorm_onnx.graph.files.model_io import prepare
from dynorm_onnx.graph.lower import LoweredNorm, lower
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.runtime.session import runnable
from dynorm_onnx.runtime.value_types import value_types
from tests.end_to_end.test_foreign_files import C, converted, model, outputs
from tests.tolerances import relative_error

RNG = np.random.default_rng(7)
SQUARE = (0.5 * RNG.normal(size=(C, C))).astype(np.float32)
WEIGHTS = {
    "lin": SQUARE, "w": np.linspace(0.5, 2, C, dtype=np.float32), "zero": np.array(0, np.float32),
    "three": np.array(3, np.int64), "one": np.array(1, np.int64),
}  # fmt: skip
BATCHES = [{"x": RNG.normal(size=(5, 4, C)).astype(np.float32)} for _ in range(6)]
NORM = "LayerNormalization<axis = -1>"
Body = Callable[[np.ndarray], Sequence[np.ndarray]]


def norm(x: np.ndarray) -> np.ndarray:
    """By the definition, float64."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * WEIGHTS["w"]


def branch(inner: str, positive: str = "h") -> str:
    return f"""
      sum = ReduceSum<keepdims = 0>({positive})
      flag = Greater(sum, zero)
      y = If(flag)<
        then_branch = t () => (float[n,4,8] t_y) {{ {inner} }},
        else_branch = e () => (float[n,4,8] e_y) {{ e_y = Neg(h) }}
      >"""


IN_IF = branch(f"t_x = MatMul(h, lin) t_y = {NORM}(t_x, w)")
IN_NESTED_IF = branch(
    f"""
    top = ReduceMax<keepdims = 0>(h)
    low = ReduceMin<keepdims = 0>(h)
    both = Add(top, low)
    wide = Greater(both, zero)
    t_y = If(wide)<
      then_branch = tt () => (float[n,4,8] tt_y) {{ tt_y = Abs(h) }},
      else_branch = te () => (float[n,4,8] te_y) {{ te_x = MatMul(h, lin) te_y = {NORM}(te_x, w) }}
    >""".replace("{{", "{").replace("}}", "}")
)
IN_LOOP = f"""
    yes = Constant<value_int = 1>()
    go = Cast<to = 9>(yes)
    y = Loop(three, go, h)<
      body = l (int64 step, bool going, float[n,4,8] s) => (bool on, float[n,4,8] l_y) {{
        on = Identity(going)
        l_x = MatMul(s, lin)
        l_y = {NORM}(l_x, w)
      }}
    >"""
UNTIL = f"""
    yes = Constant<value_int = 1>()
    go = Cast<to = 9>(yes)
    y, rows = Loop(, go, h)<
      body = l (int64 step, bool going, float[n,4,8] s) => (bool on, float[n,4,8] l_y, float l_row) {{
        even = Constant<value_int = 2>()
        on = Less(step, even)
        l_x = MatMul(s, lin)
        l_y = {NORM}(l_x, w)
        l_row = ReduceSum<keepdims = 0>(l_y)
      }}
    >"""
GROWING = f"""
    yes = Constant<value_int = 1>()
    go = Cast<to = 9>(yes)
    grown = Loop(three, go, h)<
      body = l (int64 step, bool going, float[n,k,8] s) => (bool on, float[n,m,8] l_y) {{
        on = Identity(going)
        l_n = {NORM}(s, w)
        l_y = Concat<axis = 1>(s, l_n)
      }}
    >
    y = ReduceMean<axes = [1]>(grown)"""


def scan(axis: int, backwards: int) -> str:
    row = "4,8" if axis == 0 else "n,8"
    return f"""
    state = ReduceMean<axes = [{axis}], keepdims = 0>(h)
    last, y = Scan(state, h)<
      num_scan_inputs = 1, scan_input_axes = [{axis}], scan_input_directions = [{backwards}],
      body = s (float[{row}] s_h, float[{row}] s_row) => (float[{row}] s_next, float[{row}] s_out) {{
        s_x = Add(s_h, s_row)
        s_y = {NORM}(s_x, w)
        s_next = Identity(s_y)
        s_out = Neg(s_y)
      }}
    >"""


IF_IN_SCAN = f"""
    state = ReduceMean<axes = [0], keepdims = 0>(h)
    last, y = Scan(state, h)<
      num_scan_inputs = 1,
      body = s (float[4,8] s_h, float[4,8] s_row) => (float[4,8] s_next, float[4,8] s_out) {{
        s_sum = ReduceSum<keepdims = 0>(s_row)
        s_flag = Greater(s_sum, zero)
        s_y = If(s_flag)<
          then_branch = t () => (float[4,8] t_y) {{ t_x = Add(s_h, s_row) t_y = {NORM}(t_x, w) }},
          else_branch = e () => (float[4,8] e_y) {{ e_y = Identity(s_row) }}
        >
        s_next = Identity(s_y)
        s_out = Neg(s_y)
      }}
    >"""


def by_if(h: np.ndarray) -> list[np.ndarray]:
    return [h @ SQUARE] if h.sum() > 0 else []


def by_nested_if(h: np.ndarray) -> list[np.ndarray]:
    return [h @ SQUARE] if h.sum() > 0 and h.max() + h.min() <= 0 else []


def by_loop(h: np.ndarray) -> list[np.ndarray]:
    seen = []
    for _ in range(3):
        seen.append(h @ SQUARE)
        h = norm(seen[-1])
    return seen


def by_growing(h: np.ndarray) -> list[np.ndarray]:
    seen = []
    for _ in range(3):
        seen.append(h)
        h = np.concatenate([h, norm(h)], axis=1)
    return seen


def by_scan(axis: int, backwards: int, *, branches: bool = False) -> Body:
    def run(h: np.ndarray) -> list[np.ndarray]:
        seen, state = [], h.mean(axis)
        rows = np.moveaxis(h, axis, 0)
        for row in rows[::-1] if backwards else rows:
            if branches and row.sum() <= 0:
                state = row
                continue
            seen.append(state + row)
            state = norm(seen[-1])
        return seen

    return run


CASES: dict[str, tuple[str, Body]] = {
    "If": (IN_IF, by_if), "If in If": (IN_NESTED_IF, by_nested_if), "Loop": (IN_LOOP, by_loop),
    "Loop until": (UNTIL, by_loop), "growing": (GROWING, by_growing), "Scan": (scan(0, 0), by_scan(0, 0)),
    "Scan backwards": (scan(0, 1), by_scan(0, 1)), "Scan of axis 1": (scan(1, 1), by_scan(1, 1)),
    "If in Scan": (IF_IN_SCAN, by_scan(0, 0, branches=True)),
}  # fmt: skip


def lowered(body: str, shape: str = "n,4,8") -> tuple[ir.Model, tuple[LoweredNorm, ...]]:
    text = f"g (float[{shape}] x) => (float[a,b,8] y) {{ h = MatMul(x, lin) {body} }}"
    proto = model(text, {name: array for name, array in WEIGHTS.items() if name in text})
    prepared = prepare(ir.from_proto(proto), value_types)
    return prepared, lower(prepared, find_sites(prepared, load=runnable).sites)


@pytest.mark.parametrize("case", CASES)
def test_what_a_norm_in_a_body_sees(case: str) -> None:
    body, by_hand = CASES[case]
    made, norms = lowered(body)
    before = len(made.graph.outputs), made.graph.num_nodes()
    expected = [np.concatenate([part.reshape(-1, C) for part in runs]) for feeds in BATCHES
                if (runs := by_hand(feeds["x"].astype(np.float64) @ SQUARE))]  # fmt: skip
    assert expected
    with seen_in_bodies(made, norms, BATCHES) as bodies:
        assert not bodies.kept and [norm.site_name for norm in bodies.norms] == [norms[0].site_name]
        for _ in range(2):  # as often as one likes
            rows = list(bodies.rows[norms[0].site_name]())
            assert len(rows) == len(expected)
            for found, wanted in zip(rows, expected, strict=True):
                assert relative_error(found.x, wanted) < 1e-5
                assert relative_error(found.target, norm(wanted)) < 1e-4
        fits = bodies.fits(REGISTRY["dyisru"], {norms[0].site_name: Leeway()})
    assert 0 < fits[norms[0].site_name].relative_error < 0.6
    assert (len(made.graph.outputs), made.graph.num_nodes()) == before


def test_samples_that_are_held_out_are_so_in_every_run() -> None:
    """Six batches of five samples: every eighth sample is held out, in each of the three runs of the body."""
    made, norms = lowered(IN_LOOP)
    with seen_in_bodies(made, norms, BATCHES) as bodies:
        rows = list(bodies.rows[norms[0].site_name]())
    sample = 0
    for batch in rows:
        expected = [(sample + index) % 8 == 7 for index in range(5)]
        assert np.array_equal(batch.held_out, np.tile(np.repeat(expected, 4), 3))
        sample += 5
    assert sum(batch.held_out.any() for batch in rows) == 3


def test_samples_behind_time_are_held_out_with_their_batch() -> None:
    """Of six batches of five steps and four samples the last is held out, and nothing of the others."""
    made, norms = lowered(IN_LOOP, "time,batch,8")
    with seen_in_bodies(made, norms, BATCHES) as bodies:
        rows = list(bodies.rows[norms[0].site_name]())
    assert [bool(batch.held_out.all()) for batch in rows] == [False] * 5 + [True]
    assert [bool(batch.held_out.any()) for batch in rows] == [False] * 5 + [True]


def test_samples_that_are_runs_of_a_scan_are_held_out_whole() -> None:
    made, norms = lowered(scan(0, 0))
    with seen_in_bodies(made, norms, BATCHES) as bodies:
        held_out = np.concatenate([rows.held_out for rows in bodies.rows[norms[0].site_name]()])
    assert np.array_equal(held_out, np.repeat(np.arange(30) % 8 == 7, 4))


def test_where_only_held_out_samples_come_their_tokens_are_parted() -> None:
    made, norms = lowered(IN_IF)
    signs = [1.0 if place == 7 else -1.0 for place in range(9)]
    batches = []
    for place, sign in enumerate(signs):
        x = np.random.default_rng(place).normal(size=(1, 4, C)).astype(np.float32)
        batches.append({"x": np.float32(sign * np.sign((x @ SQUARE).sum())) * x})
    with seen_in_bodies(made, norms, batches) as bodies:
        (rows,) = bodies.rows[norms[0].site_name]()
        assert rows.held_out.tolist() == [False, False, False, True]
        assert bodies.fits(REGISTRY["dyt"], {norms[0].site_name: Leeway()})[norms[0].site_name].held_out_error


@pytest.mark.parametrize("function", ["dyisru", "dyt", "derf"])
def test_the_function_in_the_file_is_the_one_that_was_fitted(function: str, tmp_path: Path) -> None:
    """Fitted to the rows that numpy finds, and computed by hand, against the file that is written."""
    text = f"g (float[n,4,8] x) => (float[n,4,8] y) {{ h = MatMul(x, lin) {IN_LOOP} }}"
    weights = {name: array for name, array in WEIGHTS.items() if name in text}
    output, report = converted(model(text, weights), tmp_path, to=function, method="fit", coupled=0, data=BATCHES)
    (site,) = report.sites
    assert site.parameters is not None
    x = np.random.default_rng(50).normal(size=(3, 4, C)).astype(np.float32)
    y = x.astype(np.float64) @ SQUARE
    for _ in range(3):
        y = REGISTRY[function](y @ SQUARE, site.parameters)
    assert relative_error(outputs(output, x=x)["y"], y) < 1e-4
    seen = [np.concatenate([part.reshape(-1, C) for part in by_loop(batch["x"].astype(np.float64) @ SQUARE)])
            for batch in BATCHES]  # fmt: skip
    by_hand = fit_rows(REGISTRY[function], "layer", 1e-5, lambda: iter([rows_of(seen)]), Leeway())
    assert site.error is not None and abs(site.error - by_hand.relative_error) < 0.05


def rows_of(parts: Sequence[np.ndarray]) -> Rows:
    """All as tokens to solve with."""
    x = np.concatenate(parts)
    return Rows(x.astype(np.float32), norm(x), np.ones(len(x), np.float32), np.zeros(len(x), bool))


def test_massive_tokens_in_a_body_are_seen() -> None:
    made, norms = lowered(IN_LOOP)
    batches = [{"x": feeds["x"].copy()} for feeds in BATCHES]
    with seen_in_bodies(made, norms, batches) as bodies:
        assert bodies.massive_sites() == set()
    for feeds in batches:
        feeds["x"][:, 0] *= 1000
    with seen_in_bodies(made, norms, batches) as bodies:
        assert bodies.massive_sites() == {norms[0].site_name}


def test_a_body_whose_shapes_lie_costs_the_others_nothing(tmp_path: Path) -> None:
    """The Loop's body says that it takes three axes, and is given four."""
    text = f"""
    g (float[n,4,8] x, int64[k] shape) => (float[a,b,c,d] z, float[n,4,8] y) {{
      h = MatMul(x, lin)
      more = Reshape(h, shape)
      z = Loop(three, , more)<
        body = l (int64 step, bool going, float[n,4,8] s) => (bool on, float[n,4,8] l_y) {{
          on = Identity(going)
          l_y = {NORM}(s, w)
        }}
      >
      {IN_IF}
    }}"""
    data = [{**feeds, "shape": np.array([1, -1, 4, C])} for feeds in BATCHES]
    weights = {name: array for name, array in WEIGHTS.items() if name in text}
    output, report = converted(model(text, weights), tmp_path, data=data)
    kept, taken = report.sites
    assert kept.status == "kept" and "what it sees cannot be had: ONNX Runtime failed" in str(kept.reason)
    assert taken.status == "converted" and taken.error is not None
    assert np.isfinite(outputs(output, **data[0])["z"]).all()


@pytest.mark.parametrize("opset", [10, 17])
def test_values_of_unknown_rank(opset: int, tmp_path: Path) -> None:
    text = """
    g (float[n,4,8] x) => (float[n,4,8] y) {
      h = MatMul(x, lin)
      yes = Constant<value = int64[1] {1}>()
      flat = Squeeze(yes)
      go = Cast<to = 9>(flat)
      y = Loop(three, go, h)<
        body = l (int64 step, bool going, float[] s) => (bool on, float[] l_y) {
          on = Identity(going)
          l_q = Mul(s, s)
          l_m = ReduceMean<axes = [-1]>(l_q)
          l_e = Add(l_m, small)
          l_r = Sqrt(l_e)
          l_d = Div(s, l_r)
          l_w = Mul(l_d, w)
          l_y = Add(l_w, outer)
        }
      >
    }"""
    weights = {name: array for name, array in WEIGHTS.items() if name in ("lin", "w", "three")}
    weights |= {"small": np.array(1e-5, np.float32), "outer": np.ones(C, np.float32)}
    made = model(text, weights, opset=opset)
    body = made.graph.node[-1].attribute[0].g
    for value in (*body.input, *body.output):
        if value.name in ("s", "l_y"):
            value.type.tensor_type.ClearField("shape")
    if opset < FLATTEN_OPSET:
        with pytest.raises(NoSiteError, match="cannot be had: the rank of its input is not known"):
            converted(made, tmp_path, data=BATCHES)
        return
    output, report = converted(made, tmp_path, data=BATCHES)
    assert [site.status for site in report.sites] == ["converted"]
    found, expected = (outputs(file, **BATCHES[0])["y"] for file in (output, made))
    assert 1e-3 < relative_error(found, expected) < 0.6

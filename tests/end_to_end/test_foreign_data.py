"""Data as others have it for models as others write them: strings, sequences, tensors of PyTorch, weights to feed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper

from dynorm_onnx import convert_model
from dynorm_onnx.calibration.data import signature
from dynorm_onnx.calibration.data.drawn_inputs import draw_samples
from dynorm_onnx.convert import main
from dynorm_onnx.errors import DataError, NoSiteError
from dynorm_onnx.functions import NormParameters
from dynorm_onnx.graph.files.model_io import prepare
from dynorm_onnx.graph.lower import lower
from dynorm_onnx.graph.replace.rewrite import replace
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import make_session, runnable
from tests.end_to_end.test_foreign_files import DATA, LIN, C, converted, model, outputs
from tests.tolerances import relative_error

WORDS = ["red", "green", "blue", "grey"]
TABLE = np.random.default_rng(5).normal(size=(len(WORDS) + 1, C)).astype(np.float32)
WEIGHT = np.linspace(0.5, 2, C, dtype=np.float32)
CATEGORY = """
g (string[n] colour, float[n,8] x) => (float[n,8] y, string[n] same) {
  id = ai.onnx.ml.LabelEncoder<keys_strings = ["red", "green", "blue", "grey"], values_int64s = [0, 1, 2, 3],
      default_int64 = 4>(colour)
  row = Gather(table, id)
  h = Add(row, x)
  y0 = LayerNormalization<axis = -1>(h, w)
  y = MatMul(y0, lin)
  same = Identity(colour)
}"""


def categories() -> onnx.ModelProto:
    """A column of strings and one of numbers, as tabular models take them."""
    made = model(CATEGORY, {"table": TABLE, "w": WEIGHT, "lin": LIN})
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    return made


def columns(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.choice([*WORDS, "unknown to it"], count), rng.normal(size=(count, C)).astype(np.float32)


def strings_in_npz(folder: Path) -> Path:
    colours, x = columns()
    np.savez(folder / "data.npz", colour=colours, x=x)
    return folder / "data.npz"


def bytes_in_npz(folder: Path) -> Path:
    colours, x = columns()
    np.savez(folder / "data.npz", colour=np.char.encode(colours, "utf-8"), x=x)
    return folder / "data.npz"


def records(folder: Path) -> Path:
    colours, x = columns()
    lines = [{"colour": str(c), "x": row.tolist(), "label": 1} for c, row in zip(colours, x, strict=True)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return folder / "data.jsonl"


def feeds(folder: Path) -> list[dict[str, Any]]:
    return [
        {"colour": [str(c) for c in part], "x": torch.tensor(row, requires_grad=True)}
        for part, row in zip(*(np.split(column, 10) for column in columns()), strict=True)
    ]


class Reader:
    """A CalibrationDataReader of ONNX Runtime's."""

    def __init__(self, folder: Path) -> None:
        colours, x = columns()
        self._items = iter(
            [{"colour": colours[:25].astype(object), "x": x[:25]}, {"colour": colours[25:], "x": x[25:]}]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._items, None)


@pytest.mark.parametrize("source", [strings_in_npz, bytes_in_npz, records, feeds, Reader])
def test_strings_are_data(source: Any, tmp_path: Path) -> None:
    output, report = converted(categories(), tmp_path, data=source(tmp_path), samples=32)
    assert report.validation is not None and 0 < report.validation.outputs["y"].relative_error < 0.5
    assert any("not compared" in line and "same (string)" in line for line in report.warnings)
    assert report.calibration is not None and 30 <= report.calibration.samples <= 36
    colours, x = columns(6)
    found = outputs(output, colour=colours, x=x)
    assert relative_error(found["y"], outputs(categories(), colour=colours, x=x)["y"]) < 0.5
    assert found["same"].tolist() == colours.tolist()


def test_a_model_of_strings_is_timed(tmp_path: Path) -> None:
    onnx.save(categories(), tmp_path / "model.onnx")
    report = convert_model(tmp_path / "model.onnx", to="rmsnorm", data=strings_in_npz(tmp_path))
    assert report.validation is not None and report.validation.outputs["y"].relative_error < 1e-5
    assert {row.variant for row in report.timing} >= {"original", "converted"}


TEXTS = """
g (string[n,k] text) => (float[n,8] y) {
  id = ai.onnx.ml.LabelEncoder<keys_strings = ["red", "green"], values_floats = [1.0, 3.0], default_float = 0.5>(text)
  h = MatMul(id, spread)
  h0 = Add(h, shift)
  y = LayerNormalization<axis = -1>(h0, w)
}"""


@pytest.mark.parametrize("name", ["lines.txt", "lines.jsonl"])
def test_text_goes_to_the_only_input_of_strings(name: str, tmp_path: Path) -> None:
    proto = model(TEXTS.replace("[n,k]", "[n,1]"), {"spread": LIN[:1], "shift": LIN[1], "w": WEIGHT})
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    lines = np.random.default_rng(2).choice(["red", "green", "what else"], 24)
    shown = [json.dumps({"text": str(line)}) if name.endswith("l") else str(line) for line in lines]
    (tmp_path / name).write_text("\n".join(shown))
    _, report = converted(proto, tmp_path, data=tmp_path / name, samples=20)
    assert report.calibration is not None and report.calibration.samples == 20


def test_objects_in_npz_are_named_and_not_unpickled(tmp_path: Path) -> None:
    colours, x = columns()
    np.savez(tmp_path / "data.npz", x=x, colour=colours.astype(object))
    with pytest.raises(DataError, match=r"allow_pickle.*'colour': save strings with dtype=str"):
        converted(categories(), tmp_path, data=tmp_path / "data.npz")


def test_numbers_are_no_strings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'colour' must be string \[n\]; the data has int64 \[\d+\]"):
        converted(categories(), tmp_path, data={"colour": np.arange(12), "x": columns(12)[1]})


SEQUENCE = """
g (seq(float[m,8]) parts, float[n,8] x) => (float[k,8] y) {
  all = ConcatFromSequence<axis = 0>(parts)
  both = Concat<axis = 0>(all, x)
  h = MatMul(both, lin)
  y0 = LayerNormalization<axis = -1>(h, w)
  y = MatMul(y0, lin)
}"""
ONE_OF_SEQUENCE = """
g (seq(float[m,8]) parts, float[n,8] x) => (float[n,8] z, seq(float[m,8]) rest) {
  y = LayerNormalization<axis = -1>(x, w)
  at = Constant<value_int = 0>()
  first = SequenceAt(parts, at)
  mean = ReduceMean<axes = [0], keepdims = 1>(first)
  h = Add(y, mean)
  z = LayerNormalization<axis = -1>(h, w)
  rest = SequenceErase(parts, at)
}"""


def parts_of(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    draw = lambda rows: rng.normal(size=(rows, C)).astype(np.float32)  # noqa: E731
    return {"parts": [draw(3), draw(1 + seed % 3)], "x": draw(2)}


def sequences_in_npz(folder: Path) -> Path:
    folder = folder / "data"
    folder.mkdir()
    for seed in range(12):
        item = parts_of(3 * seed + 2)  # of equal lengths
        np.savez(folder / f"{seed}.npz", parts=np.stack(item["parts"]), x=item["x"])
    return folder


def sequences_in_jsonl(folder: Path) -> Path:
    items = [parts_of(seed) for seed in range(12)]
    lines = [{"parts": [part.tolist() for part in item["parts"]], "x": item["x"].tolist()} for item in items]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "data.jsonl"


def sequences_in_python(folder: Path) -> list[dict[str, Any]]:
    items = [parts_of(seed) for seed in range(12)]
    return [{"parts": tuple(map(torch.tensor, item["parts"])), "x": item["x"]} for item in items]


@pytest.mark.parametrize("text", [SEQUENCE, ONE_OF_SEQUENCE], ids=["joined", "one of them"])
@pytest.mark.parametrize("source", [sequences_in_npz, sequences_in_jsonl, sequences_in_python])
def test_sequences_are_data(source: Any, text: str, tmp_path: Path) -> None:
    proto = model(text, {"lin": LIN, "w": WEIGHT})
    output, report = converted(proto, tmp_path, data=source(tmp_path))
    assert report.validation is not None and report.validation.samples > 0
    item = parts_of(77)
    name = "y" if text is SEQUENCE else "z"
    assert relative_error(outputs(output, **item)[name], outputs(proto, **item)[name]) < 0.6
    exact, _ = converted(proto, tmp_path, to="rmsnorm", data=sequences_in_python(tmp_path))
    assert relative_error(outputs(exact, **item)[name], outputs(proto, **item)[name]) < 1e-5


def test_one_tensor_is_no_sequence(tmp_path: Path) -> None:
    proto = model(SEQUENCE, {"lin": LIN, "w": WEIGHT})
    with pytest.raises(DataError, match=r"'parts' must be a sequence of float32 \[m, 8\]; the data has one"):
        (tmp_path / "data.jsonl").write_text('{"parts": 3.5, "x": [[1, 2, 3, 4, 5, 6, 7, 8]]}')
        converted(proto, tmp_path, data=tmp_path / "data.jsonl")


@pytest.mark.parametrize("kind", ["optional(float[n,4,8])", "sparse_tensor(float[n,4,8])"])
def test_inputs_that_take_no_data_are_named(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = f"g ({kind} odd, float[n,4,8] x) => (float[n,4,8] y) {{\n"
    text += "y0 = LayerNormalization<axis = -1>(x, w)\n unused = OptionalHasElement(odd)\n y = MatMul(y0, lin) }"
    onnx.save(model(text, {"w": WEIGHT, "lin": LIN}, opset=18), tmp_path / "model.onnx")
    assert main([str(tmp_path / "model.onnx"), "-q", "--data", "random"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "input 'odd' is" in said and kind.split("(")[0].split("_")[0] in said


@pytest.mark.parametrize("dtype", ["FLOAT", "BFLOAT16"])
def test_tensors_of_pytorch_are_data(dtype: str, tmp_path: Path) -> None:
    text = f"""
    g ({"float" if dtype == "FLOAT" else "bfloat16"}[n,4,8] x) => (float[n,4,8] y) {{
      wide = Cast<to = 1>(x)
      h = MatMul(wide, lin)
      y = LayerNormalization<axis = -1>(h, w)
    }}"""
    proto = model(text, {"lin": LIN, "w": WEIGHT})
    given = [{"x": torch.tensor(item["x"], requires_grad=True).to(torch.bfloat16)} for item in DATA]
    _, report = converted(proto, tmp_path, data=given)
    assert report.calibration is not None and report.validation is not None
    other = [{"x": torch.nn.Parameter(torch.tensor(item["x"]))} for item in DATA]
    assert converted(proto, tmp_path, data=other)[1].validation is not None


@pytest.mark.parametrize("kind", ["float", "string", "seq(float)", "int64"])
@pytest.mark.parametrize("data", [DATA, "random"], ids=["given", "drawn"])
def test_what_nobody_reads_does_not_block(kind: str, data: Any, tmp_path: Path) -> None:
    proto = model(f"g ({kind} idle, float[n,4,8] x) => (float[n,4,8] y) {{ y = LayerNormalization<axis = -1>(x, w) }}",
                  {"w": WEIGHT})  # fmt: skip
    element = proto.graph.input[0].type
    (element.sequence_type.elem_type if kind.startswith("seq") else element).tensor_type.ClearField("shape")
    _, report = converted(proto, tmp_path, data=data)
    assert report.validation is not None and [site.status for site in report.sites] == ["converted"]


def test_without_data_an_exact_rewrite_goes_on_where_none_can_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for proto in (categories(), model(SEQUENCE, {"lin": LIN, "w": WEIGHT})):
        output, report = converted(proto, tmp_path, to="rmsnorm", data=None)
        assert output.exists() and report.validation is None
        (told,) = report.warnings
        assert told.startswith("neither validated nor timed: no data for input") and "can be drawn: it takes" in told
        onnx.save(proto, tmp_path / "again.onnx")
        assert main([str(tmp_path / "again.onnx"), "-q", "--data", "random"]) == 2
        assert "can be drawn" in " ".join(capsys.readouterr().err.split())


LOOKED_UP = """
g ({inputs}) => (float[n,t,8] y) {{
  {index}
  row = Gather(table, index)
  h = MatMul(row, lin)
  y = LayerNormalization<axis = -1>(h, w)
}}"""
ONE = "int64[n,t] a"
TWO = "int64[n,t] a, int64[n,t] b"


@pytest.mark.parametrize(("inputs", "index", "largest"), [
    (TWO, "index = Add(a, b)", 49),
    (TWO, "s = Add(a, b)\n c = Constant<value_int = 20>()\n index = Add(s, c)", 39),
    (ONE, "c = Constant<value_int = 30>()\n index = Add(a, c)", 69),
    (ONE, "c = Constant<value_int = 10>()\n index = Mul(a, c)", 9),
    ("int64[n,t,4] a", "k = Constant<value_ints = [2]>()\n index = ReduceSum<keepdims = 0>(a, k)", 24),
    (ONE, "lo = Constant<value_int = 0>()\n hi = Constant<value_int = 99>()\n index = Clip(a, lo, hi)", 99),
    (ONE, "c = Constant<value_int = 100>()\n index = Mod(a, c)", 99),
    ("int64[n,t] a, int32[n,k] b", "wide = Cast<to = 7>(b)\n index = Concat<axis = 1>(a, wide)", 99),
    (ONE, "c = Constant<value_int = 50>()\n some = Greater(a, c)\n d = Constant<value_int = 60>()\n"
          "e = Add(a, d)\n index = Where(some, e, a)", 39),
    ("int64[n,t] a, float[100,8] table", "index = Identity(a)", 99),
])  # fmt: skip
def test_drawn_integers_stay_in_the_table_that_they_are_made_to_index(
    inputs: str, index: str, largest: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(6)
    weights = {"table": rng.normal(size=(100, C)).astype(np.float32), "lin": LIN, "w": WEIGHT}
    text = LOOKED_UP.format(inputs=inputs, index=index)
    proto = model(text, {name: array for name, array in weights.items() if name not in inputs})
    drawn = draw_samples(signature(ir.from_proto(proto)), ir.from_proto(proto).graph, rng, count=500, length=12)
    for name in {"a", "b"} & set(drawn[0]):
        values = np.concatenate([sample[name].ravel() for sample in drawn])
        assert values.min() == 0 and values.max() == largest
    _, report = converted(proto, tmp_path, data="random", samples=32)
    assert report.validation is not None
    assert not any("only 0 and 1" in line for line in report.warnings)


def test_integers_that_nothing_bounds_are_named(tmp_path: Path) -> None:
    text = "g (int64[n,4,8] a) => (float[n,4,8] y) { x = Cast<to = 1>(a)\n h = MatMul(x, lin)\n"
    proto = model(text + "y = LayerNormalization<axis = -1>(h, w) }", {"w": WEIGHT, "lin": LIN})
    _, report = converted(proto, tmp_path, data="random", samples=8)
    assert any("how large the integers of a may be: only 0 and 1 were drawn" in line for line in report.warnings)


FED = {
    "linear": ("float[8,8] m, float[8] v, float[n,4,8] x", "h0 = MatMul(x, m)\n h = Add(h0, v)"),
    "transposed": ("float[8,8] m, float[n,4,8] x", "t = Transpose(m)\n h = MatMul(x, t)"),
    "fixed batch": ("float[8,8] m, float[2,4,8] x", "h = MatMul(x, m)"),
    "table": ("float[9,8] m, int64[n,4] x", "h = Gather(m, x)"),
    "Gemm": ("float[8,8] m, float[8] v, float[n,8] x", "h = Gemm<transB = 1>(x, m, v)"),
    "norm": ("float[8] v, float[n,4,8] x", "h1 = MatMul(x, lin)\n h = LayerNormalization<axis = -1>(h1, v)"),
}


@pytest.mark.parametrize("name", FED)
def test_weights_that_every_run_must_feed_are_no_samples(name: str, tmp_path: Path) -> None:
    inputs, body = FED[name]
    shape = inputs.split()[-2].replace("int64[n,4]", "float[n,4,8]")
    text = f"g ({inputs}) => ({shape} y) {{ {body}\n y0 = LayerNormalization<axis = -1>(h, w)\n y = MatMul(y0, lin) }}"
    proto = model(text, {"w": WEIGHT, "lin": LIN})
    what = signature(ir.from_proto(proto))
    weights = {spec.name for spec in what.with_role("weight")}
    assert weights == {"m", "v"} & {spec.name for spec in what.inputs}
    assert what.fixed_batch == (2 if name == "fixed batch" else None)
    first, second = draw_samples(what, ir.from_proto(proto).graph, np.random.default_rng(0), count=2, length=12)
    assert all(np.array_equal(first[weight], second[weight]) for weight in weights)
    assert not np.array_equal(first["x"], second["x"])
    _, report = converted(proto, tmp_path, data="random", samples=20)
    assert report.calibration is not None and report.calibration.samples == 20
    fed = {spec.name: first[spec.name] for spec in what.with_role("weight")}
    many = {"x": np.concatenate([first["x"], second["x"]] * 8), **fed}
    _, report = converted(proto, tmp_path, data=many, samples=20)
    assert report.validation is not None


def test_the_nodes_of_a_graph_beside_its_edges_are_data(tmp_path: Path) -> None:
    """A square matrix in front of another fixed one is no linear layer; of a free size it has one name twice."""
    for sizes in ("5,5", "n,n"):
        nodes = sizes[0]
        text = f"g (float[{nodes},8] x, float[{sizes}] edges) => (float[{nodes},8] y) {{\n"
        text += "h0 = MatMul(edges, x)\n h = Add(h0, x)\n y = LayerNormalization<axis = -1>(h, w) }"
        proto = model(text, {"w": WEIGHT})
        what = signature(ir.from_proto(proto))
        assert not what.with_role("weight")
        first, second = draw_samples(what, ir.from_proto(proto).graph, np.random.default_rng(0), count=2, length=7)
        assert first["edges"].shape[0] == first["x"].shape[0] == (7 if nodes == "n" else 5)
        assert not np.array_equal(first["x"], second["x"])
        assert converted(proto, tmp_path, data="random", samples=8)[1].validation is not None


@pytest.mark.parametrize(("inputs", "expected"), [
    ("float[n,t,8] x, float[n,t,8] other", {"x": (1, 12, 8), "other": (1, 12, 8)}),
    ("float[b,c,side,side] x, float[b,side,c] other", {"x": (1, 3, 224, 224), "other": (1, 224, 3)}),
    ("float[b,side,c] x, float[b,c,side,side] other", {"x": (1, 224, 3), "other": (1, 3, 224, 224)}),
    ("float[b,t,8] x, float[2,b,8] other", {"x": (1, 12, 8), "other": (2, 1, 8)}),
])  # fmt: skip
def test_one_name_is_one_size_in_all_inputs(inputs: str, expected: dict[str, tuple[int, ...]]) -> None:
    proto = model(f"g ({inputs}) => (float[q] y, float[p] z) {{ y = Relu(x)\n z = Relu(other) }}", {})
    read = ir.from_proto(proto)
    (sample,) = draw_samples(signature(read), read.graph, np.random.default_rng(0), count=1, length=12)
    assert {name: array.shape for name, array in sample.items()} == expected


SINGLE = {
    "Reshape": "flat = Reshape(h, shape)\n z = MatMul(flat, lin)",
    "class token": "z = Concat<axis = 1>(token, h)",
    "Squeeze": "zero = Constant<value_ints = [0]>()\n one = Squeeze(h, zero)\n z = MatMul(one, lin)",
}


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("data", [DATA, "random"], ids=["given", "drawn"])
def test_a_model_that_takes_one_sample_whatever_it_says(name: str, data: Any, tmp_path: Path) -> None:
    text = f"""
    g (float[batch,4,8] x) => (float[p,q,8] y) {{
      h = LayerNormalization<axis = -1>(x, w)
      {SINGLE[name]}
      y = LayerNormalization<axis = -1>(z, w)
    }}"""
    weights = {"w": WEIGHT, "lin": LIN, "shape": np.array([1, 4, 8]), "token": DATA[0]["x"][:1, :1]}
    proto = model(text.replace("[p,q,8]", "[q,8]") if name == "Squeeze" else text, weights)
    for knobs in ({"to": "rmsnorm"}, {}, {"to": "rmsnorm", "data": None} if data == "random" else {}):
        _, report = converted(proto, tmp_path, **{"data": data, "samples": 12, **knobs})
        assert report.validation is not None and report.validation.samples > 1
    assert report.calibration is None or report.calibration.samples > 1


def test_a_model_that_runs_on_no_drawn_input_says_so(tmp_path: Path) -> None:
    text = "g (float[n,t] x) => (float[p,q,8] y) { z = Reshape(x, shape)\n y = LayerNormalization<axis = -1>(z, w) }"
    proto = model(text, {"w": WEIGHT, "shape": np.array([-1, 5, 8])})
    with pytest.raises(DataError, match=r"drawn at random the model does not run: .*Reshape.*--data \(x: float32"):
        converted(proto, tmp_path, data="random")
    output, report = converted(proto, tmp_path, to="rmsnorm", data=None)
    assert output.exists() and report.warnings[0].startswith("neither validated nor timed: on inputs drawn at random")


PIECES = "s = Mul(x, x)\n m = ReduceMean<axes = [{axis}]>(s)\n r = Sqrt(m)\n y = Div(x, r)"
CENTRED = (
    "mu = ReduceMean<axes = [{axis}]>(x)\n d = Sub(x, mu)\n s = Mul(d, d)\n m = ReduceMean<axes = [{axis}]>(s)\n"
    "r = Sqrt(m)\n y = Div(d, r)"
)
FUSED = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
INVALID = [
    *(("int8", f"y = {op}<axis = -1>(x, w)", "its input x is int8, which") for op in FUSED),
    ("int8", "y = com.microsoft.SkipSimplifiedLayerNormalization(x, x, w)", "its input x is int8, which Skip"),
    ("int32", PIECES.format(axis=-1), "looks like a norm, but its input is int32"),
    ("int8", CENTRED.format(axis=-1), "looks like a norm, but its input is int8"),
    *(("float", f"y = {op}<axis = -1000>(x, w)", "its axis -1000 is none of an input of 3") for op in FUSED),
    ("float", "y = LayerNormalization<axis = 1000>(x, w)", "its axis 1000 is none of an input of 3 axes"),
    ("float", PIECES.format(axis=-1000), "the axes of its mean are computed, beyond its rank"),
    ("float", CENTRED.format(axis=-1000), r"the axes \[-1000\], which its input of 3 axes does not have"),
    ("float", "y = LpNormalization<axis = -1000>(x)", "beyond its rank"),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "body", "said"), INVALID)
def test_what_no_runtime_takes_is_a_near_miss(dtype: str, body: str, said: str, tmp_path: Path) -> None:
    weights = {"w": WEIGHT.astype(np.dtype(dtype))} if "w)" in body else {}
    proto = model(f"g ({dtype}[n,4,8] x) => ({dtype}[n,4,8] y) {{ {body} }}", weights, opset=17)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(NoSiteError, match=rf"no norm that could be replaced; near misses: \w+: .*{said}"):
        converted(proto, tmp_path, validate=False, data=[])


def test_the_first_near_misses_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    lines = [f"y{place + 1} = InstanceNormalization(y{place}, w, w)" for place in range(5)]
    proto = model("g (float[n,8,4] y0) => (float[n,8,4] y5) {" + "\n".join(lines) + "}", {"w": WEIGHT})
    with pytest.raises(NoSiteError) as caught:
        converted(proto, tmp_path)
    said = str(caught.value)
    assert "near misses: y1: InstanceNormalization normalises each channel over its places; y2: " in said
    assert said.count("InstanceNormalization") == 3 and said.endswith("; and 2 more")


BFLOAT16 = {
    "LayerNormalization": ("bfloat16[8] w, bfloat16[8] b", "y = LayerNormalization<axis = -1>(x, w, b)", 17),
    "RMSNormalization": ("bfloat16[8] w", "y = RMSNormalization<axis = -1>(x, w)", 23),
    "pieces": ("bfloat16[8] w, bfloat16[8] b",
               "f = Cast<to = 1>(x)\n s = Mul(f, f)\n m = ReduceMean<axes = [-1]>(s)\n r = Sqrt(m)\n d = Div(f, r)\n"
               "h = Cast<to = 16>(d)\n k = Mul(h, w)\n y = Add(k, b)", 17),
    "Skip": ("bfloat16[8] w", "y = com.microsoft.SkipSimplifiedLayerNormalization(x, x, w)", 17),
    "Skip that gives its sum out": ("bfloat16[8] w, bfloat16[8] b", "y0, a, c, total = "
        "com.microsoft.SkipLayerNormalization(x, x, w, b)\n y1 = Cast<to = 1>(y0)\n t1 = Cast<to = 1>(total)\n"
        "u = Add(y1, t1)\n y = Cast<to = 16>(u)", 17),
}  # fmt: skip


@pytest.mark.parametrize("to", ["rmsnorm", "dyisru"])
@pytest.mark.parametrize("name", BFLOAT16)
def test_what_is_written_for_bfloat16_loads_on_any_processor(name: str, to: str) -> None:
    fed, body, opset = BFLOAT16[name]
    proto = model(f"g (bfloat16[n,4,8] x, {fed}) => (bfloat16[n,4,8] y) {{ {body} }}", {}, opset=opset)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    lowered = prepare(ir.from_proto(proto))
    (norm,) = lower(lowered, find_sites(lowered, load=runnable).sites)
    if to == "dyisru":
        replace(lowered, norm, "DyISRU", NormParameters(np.ones(C), np.zeros(C), {"beta": np.ones(C)}))
    rng = np.random.default_rng(3)
    given = {value.name: rng.normal(size=[size if isinstance(size, int) else 3 for size in value.shape])
             .astype(ml_dtypes.bfloat16) for value in lowered.graph.inputs}  # fmt: skip
    found = run(make_session(lowered), given)["y"].astype(np.float32)
    x, w, b = (np.asarray(given.get(key, 0), np.float32) for key in ("x", "w", "b"))
    x = 2 * x if "Skip" in name else x
    centred = x - x.mean(-1, keepdims=True) if "Layer" in name or "sum" in name else x
    normed = centred / np.sqrt(centred.var(-1, keepdims=True) + np.square(centred.mean(-1, keepdims=True)) + 1e-12)
    expected = (normed if to == "rmsnorm" else x / np.sqrt(1 + x * x)) * w + b
    assert relative_error(found, expected + x if "sum" in name else expected) < 2e-2


def test_an_input_that_is_too_large_to_be_drawn_is_named() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1099511627776, 8] x) => (float[n, 8] y) { y = Identity(x) }"""
    )
    model = ir.from_proto(proto)
    with pytest.raises(DataError, match=r"the input 'x' of sizes \[1099511627776, 8\] is too large to be drawn"):
        draw_samples(signature(model), model.graph, np.random.default_rng(0), count=1, length=8)

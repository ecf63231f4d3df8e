"""Files that do not state the types of their values: ONNX Runtime knows those that onnx cannot infer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from dynorm_onnx import convert_model
from dynorm_onnx.graph.files.model_io import load, prepare
from dynorm_onnx.graph.lower import lower
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.paper.real_model import compare_on_model
from dynorm_onnx.runtime.pieces import PiecewiseModel
from dynorm_onnx.runtime.session import runnable
from dynorm_onnx.runtime.value_types import value_types
from models.zoo.untyped import untyped_file, without_types
from tests.end_to_end.test_foreign_files import DATA, LIN, RNG, C, X, converted, model, outputs
from tests.graph.sites.test_find_corpus import CORPUS, INDEX
from tests.tolerances import relative_error

# What ONNX Runtime's operators give from h [n, 4, 8], and the weights that each of them reads.
BEHIND = {
    "Attention": ("a = com.microsoft.Attention<num_heads = 2>(h, qkv, qkv_bias)", ["qkv", "qkv_bias"]),
    "causal Attention": (
        "a, p = com.microsoft.Attention<num_heads = 2, unidirectional = 1>(h, qkv, qkv_bias)", ["qkv", "qkv_bias"]),
    "MultiHeadAttention": ("a = com.microsoft.MultiHeadAttention<num_heads = 2>(h, h, h)", []),
    "GroupQueryAttention": (
        """rows = Shape<start = 0, end = 1>(x)
        ends = Expand(three, rows)
        a, k, v = com.microsoft.GroupQueryAttention<num_heads = 1, kv_num_heads = 1>(h, h, h, "", "", ends, total)""",
        ["three", "total"]),
    "FusedMatMul": ("a = com.microsoft.FusedMatMul<transB = 1>(h, lin)", ["lin"]),
    "MatMulNBits": ("a = com.microsoft.MatMulNBits<K = 8, N = 8, bits = 4, block_size = 16>(h, packed, scales)",
                    ["packed", "scales"]),
    "QuickGelu": ("a = com.microsoft.QuickGelu<alpha = 1.702>(h)", []),
    "BiasGelu": ("a = com.microsoft.BiasGelu(h, b)", ["b"]),
    "GemmFastGelu": ("a0 = com.microsoft.FusedMatMul(h, lin) a = com.microsoft.FastGelu(a0, b)", ["lin", "b"]),
}  # fmt: skip
WEIGHTS = {
    "lin": LIN,
    "qkv": (0.5 * RNG.normal(size=(C, 3 * C))).astype(np.float32),
    "qkv_bias": RNG.normal(size=3 * C).astype(np.float32),
    "three": np.full(1, 3, np.int32),
    "total": np.array(4, np.int32),
    "packed": RNG.integers(0, 256, (C, 1, 8)).astype(np.uint8),
    "scales": np.full(C, 0.1, np.float32),
    "w": np.linspace(0.5, 2, C, dtype=np.float32),
    "b": RNG.normal(size=C).astype(np.float32),
}


def behind(operator: str) -> onnx.ModelProto:
    """A norm, the operator, and norms behind it, one by a Skip operator: stages begin with what the operator gives."""
    text, named = BEHIND[operator]
    proto = model(f"""
    g (float[n,4,8] x) => (float[n,4,8] y) {{
      h = LayerNormalization<axis = -1>(x, w, b)
      {text}
      s, m, v0, r = com.microsoft.SkipLayerNormalization(a, x, w, b)
      t = MatMul(s, lin)
      u = Add(t, a)
      y0 = LayerNormalization<axis = -1>(u, w, b)
      y = Add(y0, a)
    }}""", {name: WEIGHTS[name] for name in dict.fromkeys(["w", "b", "lin", *named])})  # fmt: skip
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    skip = next(node for node in proto.graph.node if node.op_type == "SkipLayerNormalization")
    del skip.output[1:]
    assert not proto.graph.value_info
    return proto


@pytest.mark.parametrize("method", ["fit", "reconstruct"])
@pytest.mark.parametrize("operator", BEHIND)
def test_behind_operators_that_only_onnx_runtime_knows(operator: str, method: str, tmp_path: Path) -> None:
    proto = behind(operator)
    output, report = converted(proto, tmp_path, method=method)
    assert [site.status for site in report.sites] == ["converted"] * 3
    found, expected = outputs(output, x=X)["y"], outputs(proto, x=X)["y"]
    assert 0 < relative_error(found, expected) < 0.9  # eight independent channels: a norm is hard to replace
    exact, _ = converted(proto, tmp_path, to="rmsnorm")
    assert relative_error(outputs(exact, x=X)["y"], expected) < 1e-5


@pytest.mark.parametrize("operator", ["Attention", "GroupQueryAttention", "MatMulNBits"])
def test_every_value_has_the_type_that_it_is_run_with(operator: str) -> None:
    proto = behind(operator)
    untyped = prepare(ir.from_proto(proto))
    assert any(value.type is None for node in untyped.graph for value in node.outputs)
    typed = prepare(ir.from_proto(proto), value_types)
    names = [str(value.name) for node in typed.graph for value in node.outputs if value.name]
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "y")
    arrays = outputs(shown, x=X)
    for value in (value for node in typed.graph for value in node.outputs if value.name):
        assert value.dtype is not None and value.dtype.numpy() == arrays[str(value.name)].dtype
        assert value.shape is not None and len(value.shape) == arrays[str(value.name)].ndim


def test_half_precision_is_not_taken_for_single(tmp_path: Path) -> None:
    """Where nobody says the type of a norm's input, its own weights do not tell it either."""
    proto = model("""
    g (float16[n,4,8] x) => (float16[n,4,8] y) {
      a = com.microsoft.FusedMatMul(x, lin)
      squares = Mul(a, a)
      mean = ReduceMean<axes = [-1]>(squares)
      stable = Add(mean, eps)
      root = Sqrt(stable)
      h = Div(a, root)
      y = com.microsoft.FusedMatMul(h, lin)
    }""", {"lin": LIN.astype(np.float16), "eps": np.array(1e-3, np.float16)})  # fmt: skip
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    data = [{"x": feeds["x"].astype(np.float16)} for feeds in DATA]
    for knobs in ({"to": "rmsnorm"}, {"method": "fit"}, {"method": "reconstruct"}):
        output, report = converted(proto, tmp_path, data=data, **knobs)
        assert [(site.status, site.dtype) for site in report.sites] == [("converted", "FLOAT16")]
        x = X.astype(np.float16)
        assert relative_error(outputs(output, x=x)["y"], outputs(proto, x=x)["y"]) < (5e-3 if "to" in knobs else 0.6)


@pytest.mark.parametrize("large", [False, True], ids=["small weights", "weights that are not read"])
def test_large_weights_lend_their_types_alone(large: bool) -> None:
    """A weight that is too large to be read for this, and one that a kernel insists to know."""
    size = 2048 if large else 4
    proto = model(f"""
    g (float[n,{size}] x) => (float[n,{size}] y) {{
      a = com.microsoft.FusedMatMul(x, w)
      y = Relu(a)
    }}""", {"w": np.ones((size, size), np.float32)})  # fmt: skip
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    loaded = ir.from_proto(proto)
    (told,) = value_types(loaded, ["a"]).items()
    assert told[0] == "a" and told[1].type == ir.TensorType(ir.DataType.FLOAT)
    assert list(loaded.graph.initializers) == ["w"] and [value.name for value in loaded.graph.outputs] == ["y"]


def test_what_onnx_runtime_cannot_load_is_told_nothing_of() -> None:
    proto = model("g (float[n,8] x) => (float[n,8] y) { a = nobodys.Operator(x) y = Relu(a) }", {})
    proto.opset_import.append(helper.make_opsetid("nobodys", 1))
    assert value_types(ir.from_proto(proto), ["a"]) == {}


def test_sequences_and_optionals_are_told_as_such() -> None:
    proto = model("""
    g (float[n,4,8] x) => (float[n,4,8] y) {
      a = com.microsoft.QuickGelu(x)
      parts = SequenceConstruct(a, a)
      maybe = Optional(a)
      one = Constant<value_int = 1>()
      y = SequenceAt(parts, one)
    }""", {}, opset=18)  # fmt: skip
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    told = value_types(ir.from_proto(proto), ["parts", "maybe", "one", "a"])
    tensor = ir.TensorType(ir.DataType.FLOAT)
    assert told["parts"].type == ir.SequenceType(tensor) and told["maybe"].type == ir.OptionalType(tensor)
    assert told["one"].shape is None and told["a"].shape is not None and list(told["a"].shape)[1:] == [4, C]


def test_a_large_model_is_run_piece_by_piece(tmp_path: Path) -> None:
    proto = behind("Attention")
    pieces = PiecewiseModel(prepare(ir.from_proto(proto), value_types), limit=200)
    assert pieces.pieces > 2
    (found,) = pieces.run(["y"], {"x": X})
    assert relative_error(found, outputs(proto, x=X)["y"]) < 1e-5


def test_the_papers_question_to_such_a_file(tmp_path: Path) -> None:
    onnx.save(behind("Attention"), tmp_path / "model.onnx")
    assert len(compare_on_model(tmp_path / "model.onnx", DATA).sites) == 3


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("method", ["fit", "reconstruct", "distil"])
def test_what_the_transformer_optimizer_writes(architecture: str, method: str, tmp_path_factory: Any) -> None:
    """With eager attention its fusions give Attention and EmbedLayerNormalization; of no value it states the type."""
    path = optimised(architecture, tmp_path_factory.getbasetemp() / architecture)
    knobs: dict[str, Any] = {"samples": 8, "max_length": 16, "time": False, "data": "random"}
    if method == "distil":
        knobs |= {"steps": 2}
    report = convert_model(path, output=path.with_suffix(f".{method}.onnx"), method=method, **knobs)
    assert len(report.with_status("converted")) == len(report.sites) == {"bert": 6, "gpt2": 5}[architecture]
    assert report.validation is not None and report.validation.outputs["logits"].relative_error < 1


def optimised(architecture: str, folder: Path) -> Path:
    """The file, made once for all methods."""
    pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    from models.zoo.exporters import optimizers, torchscript
    from models.zoo.subject import prepared, tiny

    path = folder / "optimised.untyped.onnx"
    if not path.exists():
        folder.mkdir()
        subject = prepared(tiny(architecture), attention="eager")
        (exported,) = torchscript.export(subject, folder, opset=17)
        optimizers.onnxruntime_transformers(subject, exported, folder / "optimised.onnx")
        assert untyped_file(folder / "optimised.onnx") == path
    return path


@pytest.mark.skipif(not INDEX, reason=f"no corpus in {CORPUS}; set DYNORM_CORPUS")
def test_third_party_files_are_understood_alike_without_types(tmp_path: Path) -> None:
    """The same norms in all of them, and when they are lowered no value is left that a stage could not begin with."""
    files = [CORPUS / row["file"] for row in INDEX if row["load"] == "yes" and "com.microsoft" in json.dumps(row)]
    assert len(files) > 20
    asked = 0
    for path in files:
        stripped = tmp_path / "model.onnx"
        onnx.save(without_types(onnx.load(path)), stripped)
        whole, untyped = (prepare(load(file), value_types) for file in (path, stripped))
        asked += any(value.type is None for node in prepare(load(stripped)).graph for value in node.outputs)
        before, after = (find_sites(prepared, load=runnable) for prepared in (whole, untyped))
        assert _told(before) == _told(after), path
        lower(untyped, after.sites)
        left = [value.name for node in untyped.graph for value in node.outputs if value.name and value.type is None]
        assert not left, (path, left)
    assert asked > 10


def _told(found: Any) -> list[tuple]:
    sites = [(site.name, site.kind, site.form, site.channels, site.dtype, site.axes) for site in found.sites]
    return sites + [(refusal.name, refusal.reason) for refusal in found.refused]

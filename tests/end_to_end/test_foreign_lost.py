"""What a file says of itself beside what it computes is in the converted file too, or the report names it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dynorm_onnx import custom_ops
from dynorm_onnx.convert import main
from dynorm_onnx.errors import ModelError
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.serving.genai import convert_genai_folder
from tests.end_to_end.test_foreign_files import DATA, LIN, C, converted, model

VECTOR = np.linspace(0.5, 1.5, C, dtype=np.float32)
WEIGHTS = {"lin": LIN, "lin2": 1.1 * LIN, "lin_b": VECTOR, "eps": np.array(1e-5, np.float32), "w": VECTOR, "b": VECTOR}
IN_PIECES = """
g (float[n,4,8] x) => (float[n,4,8] y) {
  h = MatMul(x, lin)
  squares = Mul(h, h)
  mean = ReduceMean<axes = [-1]>(squares)
  stable = Add(mean, eps)
  root = Sqrt(stable)
  divided = Div(h, root)
  normed = Mul(divided, w)
  y = MatMul(normed, lin2)
}"""
ONE_NODE = """
g (float[n,4,8] x) => (float[n,4,8] y) {
  h = MatMul(x, lin)
  normed = LayerNormalization<axis = -1>(h, w, b)
  h2 = MatMul(normed, lin2)
  y = Add(h2, lin_b)
}"""
SKIP = """
g (float[n,4,8] x) => (float[n,4,8] y) {
  h = MatMul(x, lin)
  r = Add(x, h)
  normed = LayerNormalization<axis = -1>(r, w, b)
  h2 = MatMul(normed, lin2)
  y = Add(h2, r)
}"""
CHANNELS_FIRST = """
g (float[n,4,8] x) => (float[n,4,8] y) {
  h = MatMul(x, lin)
  turned = Transpose<perm = [0, 2, 1]>(h)
  squares = Mul(turned, turned)
  mean = ReduceMean<axes = [1]>(squares)
  stable = Add(mean, eps)
  root = Sqrt(stable)
  normed = Div(turned, root)
  back = Transpose<perm = [0, 2, 1]>(normed)
  y = MatMul(back, lin2)
}"""


def told(text: str) -> onnx.ModelProto:
    """The model of `text` with a doc string and metadata everywhere, each unlike the others."""
    proto = model(text, {name: array for name, array in WEIGHTS.items() if name in text})
    names = [output for node in proto.graph.node for output in node.output if output != "y"]
    known = [onnx.helper.make_tensor_value_info(name, 1, None) for name in names]
    proto.graph.value_info.extend(known)
    for node in proto.graph.node:
        node.name = f"node of {node.output[0]}"
    for name, part in said(proto):
        part.doc_string = f"doc of {name}"
        part.metadata_props.add(key="said of", value=name)
    return proto


def said(proto: onnx.ModelProto) -> Iterator[tuple[str, Any]]:
    """Everything that has a doc string and metadata, by name."""
    graph = proto.graph
    yield "the model", proto
    yield "the graph", graph
    yield from ((f"node {node.output[0]}", node) for node in graph.node)
    yield from ((f"tensor {tensor.name}", tensor) for tensor in graph.initializer)
    yield from ((f"value {value.name}", value) for value in (*graph.input, *graph.output, *graph.value_info))


def what_is_told(proto: onnx.ModelProto) -> dict[str, tuple[str, list[str]]]:
    return {name: (part.doc_string, [entry.value for entry in part.metadata_props]) for name, part in said(proto)}


def assert_kept(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Of all that both files have."""
    told_before, told_after = what_is_told(before), what_is_told(after)
    both = told_before.keys() & told_after.keys()
    assert {"the model", "the graph", "node normed", "value normed", "tensor lin2"} <= both
    assert {name: told_after[name] for name in both} == {name: told_before[name] for name in both}


@pytest.mark.parametrize("knobs", [
    {"to": "rmsnorm"},
    {"method": "fit"},
    {"method": "reconstruct"},
    {"to": "dyt", "fold_weights": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("text", [IN_PIECES, ONE_NODE, SKIP], ids=["in pieces", "one node", "skip"])
def test_doc_strings_and_metadata_stay(text: str, knobs: dict[str, Any], tmp_path: Path) -> None:
    before = told(text)
    output, report = converted(before, tmp_path, **knobs)
    assert report.changed_initializers or knobs.get("method") == "fit" or knobs.get("to") == "rmsnorm"
    assert_kept(before, onnx.load(output))


def test_every_node_that_is_written_for_a_norm_says_where_it_comes_from(tmp_path: Path) -> None:
    output, _ = converted(told(CHANNELS_FIRST), tmp_path)
    nodes = onnx.load(output).graph.node
    assert sum(node.op_type == "Transpose" for node in nodes) >= 2 and "DyISRU" in [node.op_type for node in nodes]
    for node in nodes:
        assert node.doc_string.startswith("doc of node") and len(node.metadata_props) == 1


def test_the_pieces_of_a_norm_each_add_what_only_they_say(tmp_path: Path) -> None:
    before = told(IN_PIECES)
    (root,) = (node for node in before.graph.node if node.op_type == "Sqrt")
    root.metadata_props.add(key="of the root", value="kept")
    (divided,) = (node for node in before.graph.node if node.output[0] == "divided")
    divided.metadata_props.add(key="of the quotient", value="kept too")
    (norm,) = (node for node in onnx.load(converted(before, tmp_path)[0]).graph.node if node.op_type == "DyISRU")
    assert {entry.key: entry.value for entry in norm.metadata_props} == {
        "said of": "node normed", "of the root": "kept", "of the quotient": "kept too"
    }  # fmt: skip


@pytest.mark.parametrize("external", [False, True], ids=["in the file", "external"])
def test_loading_and_saving_changes_nothing_of_it(external: bool, tmp_path: Path) -> None:
    """Twice: what is written doubled at each time."""
    before = told(SKIP)
    constant = onnx.helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(VECTOR, "c"))
    constant.attribute[0].t.metadata_props.add(key="said of", value="a constant")
    before.graph.node.insert(0, constant)
    large = onnx.numpy_helper.from_array(np.ones((200, 100), np.float32), "large")
    large.doc_string = "doc of a large tensor"
    large.metadata_props.add(key="said of", value="a large tensor")
    before.graph.initializer.append(large)
    before.graph.value_info.append(onnx.helper.make_tensor_value_info("large", 1, [200, 100]))
    onnx.save(before, tmp_path / "0.onnx")
    for i in range(2):
        read = model_io.load(tmp_path / f"{i}.onnx")
        model_io.save(read, tmp_path / f"{i + 1}.onnx", external_above=0 if external else 1 << 30)
    after = onnx.load(tmp_path / "2.onnx")
    told_after = what_is_told(after)
    assert {name: told_after[name] for name in what_is_told(before)} == what_is_told(before)
    (node,) = (node for node in after.graph.node if node.op_type == "Constant")
    assert [entry.value for entry in node.attribute[0].t.metadata_props] == ["a constant"]
    assert (tmp_path / "2.onnx.data").exists() == external


def test_metadata_of_functions_and_bodies_stay(tmp_path: Path) -> None:
    before = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 18, "own" : 1]>
    g (float[n,4,8] x, bool c) => (float[n,4,8] y) {
      h = own.double(x)
      normed = LayerNormalization<axis = -1>(h, w)
      y = If (c) <then_branch = t () => (float[n,4,8] a) { a = Neg(normed) },
                  else_branch = e () => (float[n,4,8] b) { b = Abs(normed) }>
    }
    <domain: "own", opset_import: ["" : 18]>
    double (x) => (y) { y = Add(x, x) }""")
    before.graph.initializer.append(onnx.numpy_helper.from_array(VECTOR, "w"))

    def inside(proto: onnx.ModelProto) -> list[Any]:
        (condition,) = (node for node in proto.graph.node if node.op_type == "If")
        (function,) = (function for function in proto.functions if function.domain == "own")
        bodies = sorted((attribute.g for attribute in condition.attribute), key=lambda body: body.name)
        return [condition, function, function.node[0], *bodies, *(body.node[0] for body in bodies)]

    for place, part in enumerate(inside(before)):
        part.doc_string = f"doc {place}"
        part.metadata_props.add(key="place", value=str(place))
    after = onnx.load(converted(before, tmp_path, data=[{"x": np.random.default_rng(i).normal(size=(2, 4, C)).astype(
        np.float32), "c": np.array(i % 2 == 0)} for i in range(12)])[0])  # fmt: skip
    told_of = [(part.doc_string, [entry.value for entry in part.metadata_props]) for part in inside(after)]
    assert told_of == [(f"doc {place}", [str(place)]) for place in range(7)]


@pytest.mark.parametrize("to", ["rmsnorm", "dyisru"])
def test_training_info_is_left_out_and_named(to: str, tmp_path: Path) -> None:
    """It binds names of the graph to updates, and the norms' weights are among them."""
    before = told(ONE_NODE)
    training = before.training_info.add()
    training.algorithm.name = "descent"
    training.update_binding.add(key="w", value="w_new")
    output, report = converted(before, tmp_path, to=to)
    assert not onnx.load(output).training_info
    assert any("training_info" in line and "left out" in line for line in report.warnings)
    assert not any("training_info" in line for line in converted(told(ONE_NODE), tmp_path, to=to)[1].warnings)


def test_annotations_of_quantisation_stay(tmp_path: Path) -> None:
    before = told(ONE_NODE)
    annotation = before.graph.quantization_annotation.add(tensor_name="normed")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="lin_b")
    (kept,) = onnx.load(converted(before, tmp_path)[0]).graph.quantization_annotation
    assert (kept.tensor_name, kept.quant_parameter_tensor_names[0].value) == ("normed", "lin_b")


def genai_folder(folder: Path, decoder: Any) -> Path:
    folder.mkdir()
    (folder / "genai_config.json").write_text(json.dumps({"model": {"type": "llama", "decoder": decoder}}))
    onnx.save(model(ONE_NODE, {name: array for name, array in WEIGHTS.items() if name in ONE_NODE}), folder / "d.onnx")
    return folder


@pytest.mark.parametrize("options", [
    None,
    {"provider_options": None},
    {"provider_options": [None], "custom_ops_library": None},
    {"provider_options": [], "custom_ops_library": "", "log_id": "kept"},
], ids=str)  # fmt: skip
def test_what_a_genai_config_leaves_null_is_as_if_it_were_not_there(options: Any, tmp_path: Path) -> None:
    source = genai_folder(tmp_path / "from", {"filename": "d.onnx", "session_options": options})
    convert_genai_folder(source, tmp_path / "to", data=DATA, validate=False, time=False)
    decoder = json.loads((tmp_path / "to" / "genai_config.json").read_text())["model"]["decoder"]
    library = {} if custom_ops.library_path() is None else {"custom_ops_library": "libdynorm_ops.so"}
    assert decoder["session_options"] == (({**(options or {}), **library}) if library else options)
    assert "DyISRU" in [node.op_type for node in onnx.load(tmp_path / "to" / "d.onnx").graph.node]


@pytest.mark.parametrize(("decoder", "said"), [
    (None, "names no model.decoder.filename"),
    ("d.onnx", 'model.decoder is "d.onnx", and should be an object'),
    ({"filename": "d.onnx", "session_options": []}, r"session_options is \[\], and should be an object"),
    ({"filename": "d.onnx", "session_options": {"provider_options": {"cuda": {}}}}, "should be a list of objects"),
    ({"filename": "d.onnx", "session_options": {"provider_options": ["cuda"]}}, "should be a list of objects"),
], ids=str)  # fmt: skip
def test_what_a_genai_config_has_in_another_form_is_named(decoder: Any, said: str, tmp_path: Path) -> None:
    source = genai_folder(tmp_path / "from", decoder)
    with pytest.raises(ModelError, match=said):
        convert_genai_folder(source, tmp_path / "to", data=DATA)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("knob", ["--output", "--data", "--report", "--tokenizer"])
def test_a_name_that_is_too_long_for_a_file_is_wrong_use(
    knob: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    onnx.save(
        model(ONE_NODE, {name: array for name, array in WEIGHTS.items() if name in ONE_NODE}), tmp_path / "m.onnx"
    )
    np.savez(tmp_path / "d.npz", x=np.concatenate([feeds["x"] for feeds in DATA]))
    (tmp_path / "d.txt").write_text("text")
    name = "long" * 80 + {"--data": ".npz", "--report": ".html"}.get(knob, "")
    data = ["--data", str(tmp_path / ("d.txt" if knob == "--tokenizer" else "d.npz"))] if knob != "--data" else []
    before = sorted(tmp_path.iterdir())
    assert main([str(tmp_path / "m.onnx"), "-q", "--no-time", *data, knob, str(tmp_path / name)]) == 2
    assert "error: " in capsys.readouterr().err and sorted(tmp_path.iterdir()) == before

"""What a model looks like where norms are looked for."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import parser

from dynorm_onnx.graph.files.prepare import prepare
from dynorm_onnx.graph.linear.find import find_linear_layers

MODEL = """<ir_version: 10, opset_import: ["" : 21]>
g (float[3, 4] x, bool on) => (float[3, 4] y, float[4, 4] kept)
<float[4, 4] w = {0}, float[4] b = {0}, float[4, 4] v = {0}> {
  c = Identity(w)
  d = Identity(c)
  e = Identity(b)
  kept = Identity(v)
  h = MatMul(x, d)
  y = Add(h, e)
}"""


def prepared(text: str) -> ir.Graph:
    return prepare(ir.from_proto(parser.parse_model(text))).graph


def test_what_reads_a_copy_of_a_weight_reads_the_weight() -> None:
    """As exporters write equal weights that they store once."""
    graph = prepared(MODEL)
    assert [node.op_type for node in graph] == ["Identity", "MatMul", "Add"]  # what is given out stays
    (layer,) = find_linear_layers(graph).layers
    assert layer.bias is not None
    assert (layer.weight.name, layer.bias.name) == ("w", "b")


def test_a_weight_with_copies_is_shared() -> None:
    found = find_linear_layers(prepared(MODEL.replace("y = Add(h, e)", "k = MatMul(h, w) y = Add(k, e)")))
    assert not found.layers and "2 places" in found.left["w"]


@pytest.mark.parametrize("default", [True, False])
def test_a_copy_of_what_a_run_may_feed_stays(default: bool) -> None:
    """An initializer that is an input too is no constant; an input without a default none either."""
    given = MODEL.replace("bool on", "float[4, 4] w")
    graph = prepared(given if default else given.replace("float[4, 4] w = {0}, ", ""))
    assert [node.op_type for node in graph].count("Identity") == 3  # w, its copy, v


def test_copies_are_taken_out_of_what_bodies_read() -> None:
    names = ("then_branch", "else_branch")
    both = ", ".join(f"{name} = {name} () => (float[3, 4] {name}_y) {{ {name}_y = MatMul(x, d) }}" for name in names)
    graph = prepared(MODEL.replace("h = MatMul(x, d)", f"h = If (on) <{both}>"))
    (chosen,) = [node for node in graph if node.op_type == "If"]
    for attribute in chosen.attributes.values():
        (matmul,) = attribute.as_graph()
        assert matmul.inputs[1] is not None and matmul.inputs[1].name == "w"

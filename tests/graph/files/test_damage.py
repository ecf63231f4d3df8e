"""Tensors and functions that cannot be what they say are named; whole ones pass."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dynorm_onnx.errors import ModelError
from dynorm_onnx.graph.files import damage
from dynorm_onnx.graph.files.damage import refuse_damaged
from tests.shipped import MODEL

WHOLE = {
    "raw": numpy_helper.from_array(np.ones((2, 3), np.float32)),
    "numbers": helper.make_tensor("t", TensorProto.FLOAT, [2, 3], [1.0] * 6),
    "float16 as integers": helper.make_tensor("t", TensorProto.FLOAT16, [3], np.ones(3, np.float16)),
    "complex": helper.make_tensor("t", TensorProto.COMPLEX64, [3], [1j, 2j, 3j]),
    "strings": helper.make_tensor("t", TensorProto.STRING, [2], ["a", "b"]),
    "int4": numpy_helper.from_array(np.ones(5, ml_dtypes.int4)),
    "int4 as integers": helper.make_tensor("t", TensorProto.INT4, [5], [1, 2, 3, 4, 5]),
    "scalar": numpy_helper.from_array(np.float32(1)),
    "empty": numpy_helper.from_array(np.ones((0, 3), np.float32)),
    "stripped": TensorProto(data_type=TensorProto.FLOAT, dims=[2, 3], name="t"),
}


def model_with(tensor: onnx.TensorProto, *, place: str = "initializer") -> onnx.ModelProto:
    model = onnx.ModelProto()
    if place == "initializer":
        model.graph.initializer.append(tensor)
        return model
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    if place == "function":
        model.functions.append(helper.make_function("d", "F", [], ["c"], [node], []))
        return model
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=helper.make_graph([node], "g", [], [])))
    return model


@pytest.mark.parametrize("tensor", WHOLE.values(), ids=list(WHOLE))
def test_whole_tensors_pass(tensor: onnx.TensorProto) -> None:
    refuse_damaged(model_with(tensor), "model.onnx")


def test_a_real_model_passes() -> None:
    refuse_damaged(onnx.load(MODEL), MODEL)


@pytest.mark.parametrize("place", ["initializer", "body", "function"])
@pytest.mark.parametrize("dims", [[2, 4], [2], [-2, -3], [1 << 40, 1 << 40], [0]])
@pytest.mark.parametrize("kind", ["raw", "numbers"])
def test_data_that_a_shape_does_not_fit_is_named(kind: str, dims: list[int], place: str) -> None:
    tensor = onnx.TensorProto()
    tensor.CopyFrom(WHOLE[kind])
    tensor.name, tensor.dims[:] = "w", dims
    said = "has a negative size" if dims[0] < 0 else r"needs \d+ (bytes|numbers), and the file has (24|6)"
    with pytest.raises(ModelError, match=rf"model.onnx: is not a valid ONNX model: the tensor 'w' of shape .* {said}"):
        refuse_damaged(model_with(tensor, place=place), "model.onnx")


def test_names_that_are_no_text() -> None:
    model = onnx.ModelProto()
    model.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))
    broken = onnx.ModelProto.FromString(model.SerializeToString().replace(b"Relu", b"R\xfflu"))
    with pytest.raises(ModelError, match="a name in it is no UTF-8 text"):
        refuse_damaged(broken, "model.onnx")


@pytest.mark.parametrize(
    "attribute", [onnx.AttributeProto(), onnx.AttributeProto(name="axis"), onnx.AttributeProto(i=3)]
)
def test_attributes_without_name_or_type(attribute: onnx.AttributeProto) -> None:
    model = onnx.ModelProto()
    model.graph.node.append(helper.make_node("Softmax", ["x"], ["y"], name="n"))
    model.graph.node[0].attribute.append(attribute)
    with pytest.raises(ModelError, match="an attribute of Softmax 'n' has no name or no type"):
        refuse_damaged(model, "model.onnx")


def test_a_graph_that_a_caller_gives() -> None:
    node = helper.make_node("If", ["c"], ["y"], name="n")
    for kind in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        node.ClearField("attribute")
        node.attribute.append(onnx.AttributeProto(name="then_branch", type=kind, ref_attr_name="then"))
        model = onnx.ModelProto(functions=[helper.make_function("d", "F", ["c"], ["y"], [node], [])])
        with pytest.raises(ModelError, match="'then_branch' of If 'n' is a graph, and left to the function's caller"):
            refuse_damaged(model, "model.onnx")


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("value", ["-5", "abc", "1e3", "", "9" * 30])
def test_places_that_are_no_numbers_of_bytes(key: str, value: str) -> None:
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for name, text in (("location", "w.bin"), (key, value)):
        tensor.external_data.add(key=name, value=text)
    with pytest.raises(ModelError, match=rf"the {key} of the tensor 'w' .* no number of bytes"):
        refuse_damaged(model_with(tensor), "model.onnx")


def functions(*bodies: tuple[str, list[str]]) -> onnx.ModelProto:
    """Functions by name, each a chain of others."""
    model = onnx.ModelProto()
    for name, called in bodies:
        ends = ["x", *(f"v{i}" for i in range(len(called)))]
        nodes = [
            helper.make_node(other, [ends[i]], [ends[i + 1]], domain="d" if other != "Relu" else "")
            for i, other in enumerate(called)
        ]
        model.functions.append(helper.make_function("d", name, ["x"], [ends[-1]], nodes, []))
    model.graph.node.append(helper.make_node(bodies[0][0], ["x"], ["y"], domain="d"))
    return model


@pytest.mark.parametrize("bodies", [[("F", ["F"])], [("F", ["Relu", "G"]), ("G", ["H"]), ("H", ["Relu", "G"])]])
def test_functions_without_end_are_named(bodies: list[tuple[str, list[str]]]) -> None:
    with pytest.raises(ModelError, match=r"the function '[FG]' calls itself, or one that does"):
        refuse_damaged(functions(*bodies), "model.onnx")


def test_functions_that_double_thirty_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubling(times: int) -> onnx.ModelProto:
        return functions(*((f"F{i}", [f"F{i + 1}"] * 2) for i in range(times)), (f"F{times}", ["Relu"]))

    refuse_damaged(doubling(8), "model.onnx")
    with pytest.raises(ModelError, match=r"its functions come to [\d,]+ nodes, more than 1,000,000"):
        refuse_damaged(doubling(30), "model.onnx")
    monkeypatch.setattr(damage, "MOST_NODES", 20)
    with pytest.raises(ModelError, match="more than 20"):
        refuse_damaged(doubling(8), Path("model.onnx"))

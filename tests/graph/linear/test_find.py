"""Linear layers are found in every spelling, and what is found computes what the node computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from dynorm_onnx.graph.linear.find import find_linear_layers
from dynorm_onnx.graph.linear.linear_layer import LinearLayer
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import make_session
from tests.tolerances import TOLERANCE, relative_error

IN, OUT = 6, 4
SPELLINGS = {
    "MatMul": ("y = MatMul(x, w)", [IN, OUT], "[2, 5, 6]"),
    "MatMul, constant on the left": ("y = MatMul(w, x)", [OUT, IN], "[2, 6, 5]"),
    "MatMul and bias": ("h = MatMul(x, w) y = Add(h, b)", [IN, OUT], "[2, 5, 6]"),
    "bias and MatMul": ("h = MatMul(x, w) y = Add(b, h)", [IN, OUT], "[2, 5, 6]"),
    "Gemm": ("y = Gemm(x, w, b)", [IN, OUT], "[5, 6]"),
    "Gemm, transposed and scaled": ("y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)", [OUT, IN], "[5, 6]"),
    "Gemm, x transposed": ("y = Gemm<transA=1>(x, w)", [IN, OUT], "[6, 5]"),
    "FusedMatMul": ("y = com.microsoft.FusedMatMul<transB=1, alpha=0.25>(x, w)", [OUT, IN], "[2, 5, 6]"),
    "1x1 Conv": ("y = Conv<kernel_shape=[1]>(x, w, b)", [OUT, IN, 1], "[2, 6, 5]"),
}


def model_of(body: str, weight_shape: list[int], x_shape: str) -> ir.Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> g (float{x_shape} x) => (float y) {{ {body} }}'
    )
    proto.graph.initializer.append(numpy_helper.from_array(rng.normal(size=weight_shape).astype(np.float32), "w"))
    if "b" in body.replace("beta", "").split("(", 1)[1]:
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(size=OUT).astype(np.float32), "b"))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def by_definition(layer: LinearLayer, x: np.ndarray) -> np.ndarray:
    rows = np.moveaxis(x.astype(np.float64), layer.feature_axis, -1)
    y = rows @ layer.matrix() + layer.offset()
    return np.moveaxis(y, -1, layer.feature_axis if layer.node.attributes.get("transA") is None else -1)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling(spelling: str) -> None:
    body, weight_shape, x_shape = SPELLINGS[spelling]
    model = model_of(body, weight_shape, x_shape)
    found = find_linear_layers(model.graph)
    (layer,) = found.layers
    assert (layer.inputs, layer.outputs) == (IN, OUT) and not found.left
    assert layer.y is not None and layer.y.name == "y"
    x = np.random.default_rng(1).normal(size=[int(n) for n in x_shape.strip("[]").split(",")]).astype(np.float32)
    y = run(make_session(model), {"x": x})["y"]
    assert relative_error(y, by_definition(layer, x)) < TOLERANCE["float32"]
    stored = layer.stored_parameters(layer.parameters())
    assert set(stored) == {"w", "b"} if layer.bias is not None else {"w"}
    for name, array in stored.items():
        np.testing.assert_array_equal(array, model.graph.initializers[name].const_value.numpy())


def test_a_weight_that_is_read_twice_is_left_and_named() -> None:
    model = model_of("h = MatMul(x, w) k = MatMul(x, w) y = Add(h, k)", [IN, OUT], "[5, 6]")
    found = find_linear_layers(model.graph)
    assert not found.layers and "2 places" in found.left["w"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("end", ["y = MatMul(x, t)", "h = MatMul(x, t) y = Add(h, b)"])
def test_a_weight_that_is_transposed_where_the_model_runs(end: str, tied: bool) -> None:
    """A layer as any other, but for one whose weight is read elsewhere too: it is held."""
    also = " index = Constant<value = int64[1] {0}>() row = Gather(w, index) also = Neg(row)" if tied else ""
    model = model_of(f"t = Transpose<perm = [1, 0]>(w) {end}{also}", [OUT, IN], "[5, 6]")
    found = find_linear_layers(model.graph)
    (layer,) = found.held if tied else found.layers
    assert bool(found.layers) is not tied and set(found.left) == ({"w"} if tied else set())
    assert layer.y is not None and (layer.y.name, layer.inputs, layer.outputs) == ("y", IN, OUT)
    x = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    y = run(make_session(model), {"x": x})["y"]
    assert relative_error(y, by_definition(layer, x)) < TOLERANCE["float32"]


def test_a_layer_whose_weight_is_read_elsewhere_too_is_held() -> None:
    model = model_of("h = MatMul(x, w) k = MatMul(x, w) y = Add(h, k)", [IN, OUT], "[5, 6]")
    assert [layer.name for layer in find_linear_layers(model.graph).held] == ["w", "w"]


@pytest.mark.parametrize(("weight", "named"), [("w", False), ("Identity(w)", False), ("Neg(w)", True)])
def test_a_convolution_is_named_only_where_its_weight_is_computed(weight: str, named: bool) -> None:
    made = "" if weight == "w" else f"v = {weight}\n"
    model = model_of(f"{made}y = Conv<kernel_shape=[3]>(x, {'v' if made else 'w'})", [OUT, IN, 3], "[2, 6, 5]")
    left = find_linear_layers(model.graph).left
    assert list(left.values()) == (["Neg: its weights are made where the model runs"] if named else [])


def test_the_residual_stream_is_seen_and_a_bias_is_none() -> None:
    model = model_of("h = MatMul(x, w) k = Add(h, b) s = Sin(k) y = Add(k, s)", [IN, OUT], "[5, 6]")
    (layer,) = find_linear_layers(model.graph).layers
    assert layer.bias is not None and layer.residual is None  # k has two readers


def test_the_sum_with_the_stream_is_the_residual() -> None:
    square = [IN, IN]
    (layer,) = find_linear_layers(model_of("h = MatMul(x, w) y = Add(x, h)", square, "[5, 6]").graph).layers
    assert layer.residual is not None
    assert (layer.residual.stream.name, layer.residual.total.name) == ("x", "y")
    model = model_of("s = ReduceSum<keepdims=1>(x, axis) h = MatMul(x, w) y = Add(s, h)", [IN, OUT], "[5, 6]")
    axis = ir.tensor(np.array([1]), name="axis")
    model.graph.register_initializer(
        ir.Value(name="axis", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64), const_value=axis)
    )
    (layer,) = find_linear_layers(model.graph).layers
    assert layer.residual is None  # [5, 1] is stretched, which no residual stream is


@pytest.mark.parametrize("activation", ["BiasGelu", "FastGelu"])
def test_a_bias_that_the_activation_adds_is_the_layers(activation: str) -> None:
    model = model_of(f"h = MatMul(x, w) y = com.microsoft.{activation}(h, b)", [IN, OUT], "[2, 5, 6]")
    model.graph[0].outputs[0].shape = ir.Shape([2, 5, OUT])
    (layer,) = find_linear_layers(model.graph).layers
    assert layer.bias is not None and layer.bias.name == "b" and layer.y is None and layer.residual is None
    assert np.array_equal(layer.offset(), model.graph.initializers["b"].const_value.numpy())


@pytest.mark.parametrize(("sizes", "ends"), [("", [4, 8, 12]), (", qkv_hidden_sizes=[4, 4, 4]", [4, 8, 12])])
def test_queries_keys_and_values_are_parts_of_one_layer(sizes: str, ends: list[int]) -> None:
    body = f"y = com.microsoft.Attention<num_heads=2{sizes}>(x, w)"
    (layer,) = find_linear_layers(model_of(body, [IN, 3 * OUT], "[2, 5, 6]").graph).layers
    assert [part.stop for part in layer.parts] == ends and [part.start for part in layer.parts] == [0, *ends[:-1]]
    assert layer.y is None


def test_other_layers_are_one_part() -> None:
    (layer,) = find_linear_layers(model_of("y = MatMul(x, w)", [IN, OUT], "[2, 5, 6]").graph).layers
    assert layer.parts == (slice(0, OUT),)

"""What holds for a layer with a quantised weight in any spelling."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from dynorm_onnx.graph.linear.find import find_linear_layers
from dynorm_onnx.graph.linear.linear_layer import LinearLayer
from dynorm_onnx.graph.quantised import QuantisedWeight
from dynorm_onnx.graph.replace.rewrite import set_initializers
from tests.tolerances import relative_error


def model_of(text: str, arrays: Mapping[str, np.ndarray]) -> ir.Model:
    """A graph `g` in ONNX's text form, with initializers, 4-bit ones too, that its nodes name."""
    head = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'
    model = ir.from_proto(onnx.parser.parse_model(head + text))
    named = {value for node in model.graph for value in node.inputs if value is not None}
    for value in named:
        if value.name in arrays and value.producer() is None:
            value.const_value = ir.tensor(arrays[value.name], name=value.name)
            value.shape, value.dtype = ir.Shape(arrays[value.name].shape), value.const_value.dtype
            model.graph.register_initializer(value)
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))


def layer_of(model: ir.Model) -> LinearLayer:
    """The one layer of a model, which is on a grid."""
    found = find_linear_layers(model.graph)
    (layer,) = found.on_grid
    assert not found.left and not found.layers and layer.is_quantised
    return layer


def reason(model: ir.Model) -> str:
    """Why the one layer of a model is left."""
    found = find_linear_layers(model.graph)
    (told,) = found.left.values()
    assert not found.on_grid and not found.layers
    return told


def check_layer(model: ir.Model, x: np.ndarray, tolerance: float) -> LinearLayer:
    """ONNX Runtime puts out what the matrix that was read says; writing it back changes no bit; another matrix and
    other scales, written and read again, are what ONNX Runtime then computes with."""
    layer = layer_of(model)
    check_output(model, layer, x, tolerance)
    check_round_trip(layer)
    stored, grid = layer.stored, layer.grid()
    assert isinstance(stored, QuantisedWeight) and grid is not None
    rng = np.random.default_rng(3)
    if layer.has_free_scales:
        grid = grid.with_scale(grid.scale.numbers * rng.uniform(0.8, 1.25, grid.scale.numbers.shape))
    parameters = layer.parameters()
    numbers = rng.integers(grid.low, grid.high + 1, layer.stored.shape)
    parameters[: layer.inputs] = grid.values(numbers)
    arrays = layer.stored_parameters(parameters, grid)
    assert set(arrays) <= {str(value.name) for value in layer.initializers}
    set_initializers(model, arrays)
    again = layer_of(model)
    np.testing.assert_array_equal(again.stored.numbers(), numbers)
    np.testing.assert_allclose(again.matrix(), parameters[: layer.inputs], rtol=1e-6)
    check_output(model, again, x, tolerance)
    return layer


def check_output(model: ir.Model, layer: LinearLayer, x: np.ndarray, tolerance: float) -> None:
    """By the operators as they stand: of a DequantizeLinear and a MatMul ONNX Runtime's optimizer makes one operator,
    which rounds x to 8 bits as well."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    serialized = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": x})
    assert relative_error(y, x.astype(np.float64) @ layer.matrix() + layer.offset()) < tolerance


def check_round_trip(layer: LinearLayer) -> None:
    """What was read is written back bit by bit, and in no more initializers than must change."""
    stored = layer.stored_parameters(layer.parameters())
    values = {str(value.name): value for value in layer.initializers}
    assert str(layer.weight.name) in stored
    for name, array in stored.items():
        held = values[name].const_value
        assert held is not None and array.dtype == held.numpy().dtype and array.shape == held.numpy().shape
        assert array.tobytes() == held.numpy().tobytes()

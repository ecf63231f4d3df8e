"""The function bodies in ONNX Runtime: every operator, type and opset against float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dynorm_onnx.functions import DOMAIN, FORMS, FUNCTIONS, Coupling, Form, Function, onnx_function
from dynorm_onnx.functions.dyisru import DYISRU
from tests.builders.execute import run_model
from tests.builders.installed import ERF_KEEPS_NAN, NEWEST, each_opset
from tests.tolerances import TOLERANCE, relative_error

CHANNELS = 24
TYPES = {
    "float32": (TensorProto.FLOAT, np.dtype(np.float32)),
    "float16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bfloat16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
    "double": (TensorProto.DOUBLE, np.dtype(np.float64)),
}
COUPLING = Coupling(np.array([5, 0, 23]), np.array([0.5, 0.015625, 0.125]))
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)


def parameters(function: Function, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    ranges = {"beta": (1.0, 30.0), "alpha": (0.05, 0.4), "shift": (-0.3, 0.3)}
    return {name: rng.uniform(*ranges[name], size=size).astype(np.float32) for name in function.parameter_names}


def coupled(constants: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return constants | {
        "channels": COUPLING.channels.astype(np.int64),
        "coupling": COUPLING.strengths.astype(np.float32),
    }


def model_of(
    function: Function, form: Form, opset: int, element_type: int, constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    """A model of one node, X (and skip) in, all else initializers."""
    data = ["X", "skip"] if form.skip else ["X"]
    outputs = ["Y", "residual"] if form.skip else ["Y"]
    assert (*data, *constants) == function.input_names(form)
    node = helper.make_node(function.node_type(form), [*data, *constants], outputs, domain=DOMAIN)
    shape = ["batch", "tokens", CHANNELS]
    graph = helper.make_graph(
        [node],
        "one_function",
        [helper.make_tensor_value_info(name, element_type, shape) for name in data],
        [helper.make_tensor_value_info(name, element_type, shape) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(
        graph,
        ir_version=8,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        functions=[onnx_function(function, opset, element_type, form)],
    )


@every_function
@pytest.mark.parametrize("form", FORMS, ids=lambda form: DYISRU.node_type(form))
@pytest.mark.parametrize("size", [1, CHANNELS], ids=["scalar", "per-channel"])
@each_opset(9, 11, 13, 14, 15, 18, 20, 23, NEWEST)
@pytest.mark.parametrize("dtype", TYPES)
def test_body_agrees_with_float64(function: Function, form: Form, size: int, opset: int, dtype: str) -> None:
    element_type, numpy_type = TYPES[dtype]
    if dtype == "bfloat16" and opset < 13:
        pytest.skip("bfloat16 came to the operators with opset 13")
    rng = np.random.default_rng(opset)
    constants = {
        "weight": rng.normal(size=CHANNELS).astype(numpy_type),
        "bias": rng.normal(size=CHANNELS).astype(numpy_type),
    } | parameters(function, rng, size)
    feeds = {"X": rng.normal(0, 4, (2, 5, CHANNELS)).astype(numpy_type)}
    if form.skip:
        feeds["skip"] = rng.normal(0, 4, (2, 5, CHANNELS)).astype(numpy_type)
    given = coupled(constants) if form.coupled else constants
    model = model_of(function, form, opset, element_type, given)
    onnx.checker.check_model(model, full_check=True)

    outputs = run_model(model, feeds)

    total = feeds["X"] + feeds["skip"] if form.skip else feeds["X"]
    wide = total.astype(np.float64)
    expected = function.reference(COUPLING.applied(wide) if form.coupled else wide, **constants)
    assert outputs[0].dtype == numpy_type
    assert relative_error(outputs[0], expected) < TOLERANCE[dtype]
    if form.skip:
        assert relative_error(outputs[1], total) < TOLERANCE[dtype]


@every_function
@pytest.mark.parametrize("form", [Form(), Form(coupled=True)], ids=["plain", "coupled"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_extremes(function: Function, form: Form, dtype: str) -> None:
    element_type, numpy_type = TYPES[dtype]
    largest = 1e38 if dtype == "float32" else float(np.finfo(numpy_type).max)
    x = np.zeros((1, 1, CHANNELS), numpy_type)
    x[0, 0, :5] = [largest, -largest, np.nan, np.inf, 1e-7]
    rng = np.random.default_rng(0)
    constants = {"weight": np.full(CHANNELS, 2, numpy_type), "bias": np.full(CHANNELS, 1, numpy_type)}
    constants |= parameters(function, rng, 1)
    if form.coupled:  # the coupled channels hold ordinary values: channel 0, the largest, would mute all others
        constants |= {"channels": np.array([7, 8]), "coupling": np.ones(2, np.float32)}
    y = run_model(model_of(function, form, 18, element_type, constants), {"X": x})[0][0, 0]
    np.testing.assert_allclose(y[[0, 1]], [3, -1], rtol=1e-3)
    if function.name != "derf" or ERF_KEEPS_NAN:
        assert np.isnan(y[2])
    assert y[3] == pytest.approx(3, rel=1e-3)
    assert np.all(np.isfinite(np.delete(y, 2)))


@every_function
def test_a_massive_coupled_channel_mutes_the_others(function: Function) -> None:
    """What the norm does to an attention sink; also where the square of the channel would overflow."""
    x = np.ones((1, 3, CHANNELS), np.float32)
    x[0, 1, 5], x[0, 2, 5] = 1e4, 1e38
    rng = np.random.default_rng(0)
    constants = {"weight": np.ones(CHANNELS, np.float32), "bias": np.zeros(CHANNELS, np.float32)}
    constants |= {
        name: np.zeros_like(value) if name == "shift" else value for name, value in parameters(function, rng, 1).items()
    }
    constants |= {"channels": np.array([5]), "coupling": np.ones(1, np.float32)}
    y = run_model(model_of(function, Form(coupled=True), 18, TensorProto.FLOAT, constants), {"X": x})[0][0]
    others = np.abs(np.delete(y, 5, axis=1))
    assert others[0].min() > 0.02
    assert others[1].max() < 1e-3
    assert others[2].max() < 1e-3
    assert np.isfinite(y).all()

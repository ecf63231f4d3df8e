"""The operators in ONNX Runtime on the CPU: against their definitions, and against their function bodies."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from dynorm_onnx import custom_ops
from dynorm_onnx.functions import OPERATORS
from tests.builders.installed import ERF_KEEPS_NAN
from tests.custom_ops.nodes import NUMPY_TYPE, Node, check_chain, every_coupled, every_operator, model_of
from tests.tolerances import TOLERANCE, relative_error

CPU = ["CPUExecutionProvider"]


def session_of(model: onnx.ModelProto, *, kernels: bool = True) -> ort.InferenceSession:
    """A session with the library, or by the function bodies alone; nodes without a body need the library."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # every tensor an allocation of its own: sanitizers see its ends
    if kernels:
        custom_ops.register(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=CPU)


def check(node: Node, outputs: list[np.ndarray], feeds: dict[str, np.ndarray]) -> None:
    expected = node.expected(feeds)
    assert relative_error(outputs[0], expected[0]) < TOLERANCE[node.dtype]
    if node.skip:
        np.testing.assert_array_equal(outputs[1], expected[1])


def test_the_library_is_installed() -> None:
    assert custom_ops.library_path() is not None
    assert custom_ops.library_providers()[0] == CPU[0]


@pytest.mark.parametrize("dtype", NUMPY_TYPE)
@every_operator
@pytest.mark.parametrize("channels", [7, 64, 100])
@pytest.mark.parametrize("one_parameter", [True, False])
def test_agrees_with_its_definition(op_type: str, dtype: str, channels: int, one_parameter: bool) -> None:
    node = Node(op_type, dtype, channels, 1 if one_parameter else channels)
    feeds = node.feeds(3, 5)
    check(node, session_of(model_of(node)).run(None, feeds), feeds)


@pytest.mark.parametrize("dtype", NUMPY_TYPE)
@every_operator
def test_one_file_with_and_without_the_library(op_type: str, dtype: str) -> None:
    node = Node(op_type, dtype)
    model, feeds = model_of(node, with_body=True), node.feeds(2, 9)
    with_kernels = session_of(model).run(None, feeds)
    by_body = session_of(model, kernels=False).run(None, feeds)
    for fused, inlined in zip(with_kernels, by_body, strict=True):
        assert relative_error(fused, inlined) < TOLERANCE[dtype]


@every_coupled
@pytest.mark.parametrize("dtype", NUMPY_TYPE)
@pytest.mark.parametrize(("channels", "coupled"), [(1, 1), (7, 1), (33, 3), (100, 32), (768, 33), (300, 300)])
def test_any_number_of_coupled_channels(op_type: str, dtype: str, channels: int, coupled: int) -> None:
    """From one to all; rows shorter than a vector; one row, four side by side, and both."""
    node = Node(op_type, dtype, channels, channels, coupled)
    session = session_of(model_of(node))
    for rows in (1, 4, 7):
        feeds = node.feeds(1, rows)
        check(node, session.run(None, feeds), feeds)


@every_coupled
@pytest.mark.parametrize("dtype", NUMPY_TYPE)
def test_a_massive_channel_mutes_its_token_alone(op_type: str, dtype: str) -> None:
    """What is coupled counts as 1e15 at most, infinities too; NaN there takes the token with it, elsewhere itself."""
    node = Node(op_type, dtype, coupled=1)
    feeds, massive = node.feeds(1, 8), int(node.parameters()["channels"][0])
    x, largest = feeds["x"], {"float16": 6e4, "double": 1e100}.get(dtype, 1e38)
    infinite = 1e120 if dtype == "double" else np.inf  # where bodies in double have no limit yet
    x[0, [1, 2, 4, 6], massive] = [largest, -infinite, 20, np.nan]
    x[0, 7, massive - 1] = np.nan
    feeds = {name: node.rounded(values) for name, values in feeds.items()}
    model = model_of(node, with_body=True)
    for kernels in (True, False):
        y, *residual = session_of(model, kernels=kernels).run(None, feeds)
        total = (residual or [feeds["x"]])[0].astype(np.float64)
        expected = node.function_of(np.clip(total, -1e120, 1e120), node.parameters())  # infinity over itself is NaN
        if kernels or dtype == "double" or "Derf" not in op_type or ERF_KEEPS_NAN:
            np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
        for token, wanted in zip(y[0, :6], expected[0, :6], strict=True):
            assert relative_error(token, wanted) < TOLERANCE[dtype]


@every_operator
@pytest.mark.parametrize("leading", [(), (1,), (2, 3, 4), (0,), (3, 0), (1, 700)])
def test_any_shape(op_type: str, leading: tuple[int, ...]) -> None:
    node = Node(op_type)
    shape: tuple[int | str | None, ...] = (*(f"axis{i}" for i in range(len(leading))), node.channels)
    feeds = node.feeds(*leading)
    outputs = session_of(model_of(node, shape=shape)).run(None, feeds)
    assert outputs[0].shape == feeds["x"].shape
    check(node, outputs, feeds)


@every_operator
def test_parameters_computed_in_the_model(op_type: str) -> None:
    node = Node(op_type, parameter_size=48)
    feeds = node.feeds(4, 4)
    outputs = session_of(model_of(node, constants=False)).run(None, feeds | node.parameters())
    check(node, outputs, feeds)


@pytest.mark.parametrize("op_type", [op_type for op_type, (_, form) in OPERATORS.items() if form.skip])
def test_chains_share_buffers_safely(op_type: str) -> None:
    """On tensors so large that threads run."""
    check_chain(op_type, session_of)


@pytest.mark.parametrize(
    ("changed", "size", "words"),
    [
        ("weight", 5, ("weight has shape [5]", "X")),
        ("bias", 5, ("bias has shape [5]", "weight has shape [48]")),
        ("shift", 7, ("shift has shape [7]", "weight has shape [48]")),
    ],
)
def test_wrong_parameter_shapes_are_named(changed: str, size: int, words: tuple[str, ...]) -> None:
    node = Node("Derf")
    parameters = node.parameters() | {changed: np.ones(size, np.float32)}
    if changed == "weight":
        parameters["bias"] = np.ones(size, np.float32)
        words = ("X has shape [2, 3, 48]", "weight has shape [5]")
    session = session_of(model_of(node, constants=False))
    with pytest.raises(Exception, match="dynorm::Derf") as caught:
        session.run(None, node.feeds(2, 3) | parameters)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "value", "words"),
    [
        ("channels", np.zeros((0,), np.int64), "channels has shape [0] and must have one axis of at least one element"),
        ("channels", np.zeros((2, 2), np.int64), "channels has shape [2, 2] and must have one axis"),
        ("coupling", np.ones(3, np.float32), "coupling has shape [3] and must have the same, where channels has"),
        ("channels", np.array([0, 1, 2, 48]), "channels holds 48, and must hold indices of channels, 0 to 47."),
        ("channels", np.array([0, 1, 2, -1]), "channels holds -1"),
    ],
)
@pytest.mark.parametrize("constants", [False, True])
def test_wrong_couplings_are_named(changed: str, value: np.ndarray, words: str, constants: bool) -> None:
    """When the node runs; when it is made, if they are constants."""
    node = Node("SkipCoupledDerf")
    model, parameters = model_of(node, constants=constants), node.parameters() | {changed: value}
    if constants:
        kept = [tensor for tensor in model.graph.initializer if tensor.name != changed]
        del model.graph.initializer[:]
        model.graph.initializer.extend([*kept, numpy_helper.from_array(value, changed)])
    with pytest.raises(Exception, match="dynorm::SkipCoupledDerf") as caught:
        session_of(model).run(None, node.feeds(2, 3) | ({} if constants else parameters))
    assert words in str(caught.value)


def test_skip_must_have_the_shape_of_x() -> None:
    node = Node("SkipDyT")
    feeds = node.feeds(2, 3)
    feeds["skip"] = feeds["skip"][:1]
    with pytest.raises(Exception, match="dynorm::SkipDyT") as caught:
        session_of(model_of(node)).run(None, feeds)
    assert "skip has shape [1, 3, 48]" in str(caught.value)
    assert "X has shape [2, 3, 48]" in str(caught.value)


@pytest.mark.parametrize("shape", [("batch", "sequence", 48), (2, "sequence", 48), (4, 5, 48)])
@every_operator
def test_shapes_are_known_behind_the_node(op_type: str, shape: tuple[int | str, ...]) -> None:
    session = session_of(model_of(Node(op_type), shape=shape))
    for output in session.get_outputs():
        assert tuple(output.shape) == shape


def test_an_axis_without_a_name_keeps_the_others_known() -> None:
    session = session_of(model_of(Node("DyT"), shape=(None, "sequence", 48)))
    first, *rest = session.get_outputs()[0].shape
    assert rest == ["sequence", 48]
    assert not isinstance(first, int)


def test_a_shape_that_is_not_known_stays_unknown() -> None:
    model = model_of(Node("DyT"))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    node = Node("DyT")
    feeds = node.feeds(2, 2)
    check(node, session_of(model).run(None, feeds), feeds)


def test_infinities_nan_and_the_largest_floats() -> None:
    node = Node("DyISRU", channels=8)
    x = np.array([[np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, 0.0, -1e20]], np.float32)
    parameters = node.parameters()
    weight, bias = (np.float64(parameters[name]) for name in ("weight", "bias"))
    (y,) = session_of(model_of(node, shape=(1, 8))).run(None, {"x": x})
    limits = weight * np.array([1, -1, np.nan, 1, -1, 0, 0, -1]) + bias
    np.testing.assert_allclose(y[0], limits, rtol=1e-6)


def test_types_must_agree() -> None:
    """A weight of another type than X is refused when the model is loaded."""
    model = model_of(Node("DyT"))
    weight = next(value for value in model.graph.initializer if value.name == "weight")
    weight.CopyFrom(helper.make_tensor("weight", TensorProto.DOUBLE, [48], np.ones(48)))
    with pytest.raises(Exception, match="DyT"):
        session_of(model)

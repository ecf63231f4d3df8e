"""The operators on a GPU: against their definitions in float64, on the stream of their session, in a whole model.

Needs a GPU, an ONNX Runtime with CUDA and a library that was built with nvcc; skipped elsewhere.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dynorm_onnx import convert_model
from dynorm_onnx.functions import DOMAIN, DOMAIN_VERSION, OPERATORS, REGISTRY
from dynorm_onnx.runtime.arrays import feed_value, run
from dynorm_onnx.runtime.library import onnxruntime
from dynorm_onnx.runtime.placement import placement
from dynorm_onnx.runtime.session import PROVIDERS, has_kernels, make_session
from tests.custom_ops.nodes import (
    IR_VERSION,
    NUMPY_TYPE,
    ONNX_TYPE,
    OPSET,
    Node,
    chain_of,
    check_chain,
    every_coupled,
    every_operator,
    model_of,
)
from tests.shipped import MODEL, NORMS, TEXT
from tests.tolerances import TOLERANCE, relative_error

DEVICE = "cuda"
EP = PROVIDERS[DEVICE][0]
SKIP_FORMS = [op_type for op_type, (_, form) in OPERATORS.items() if form.skip]
# Whole vectors of every type, of some types, and of none; more than one block across.
CHANNELS = [1, 3, 8, 100, 160, 768, 1000, 4096]
# Fewer than a block is high, odd, and enough that a thread goes down several rows.
ROWS = {channels: [1, 2, 33, 600 if channels > 700 else 5003] for channels in CHANNELS}


def missing() -> str | None:
    """Why nothing can be run on a GPU here; None where it can."""
    ort = onnxruntime()
    if EP not in ort.get_available_providers():
        return f"CUDA is missing: this ONNX Runtime ({ort.__version__}) was built without it"
    if not has_kernels(DEVICE):
        return "CUDA is missing: the custom-op library was built without nvcc"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "CUDA is missing: there is no driver"
    count = ctypes.c_int()
    found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return None if found else "CUDA is missing: the driver finds no GPU"


MISSING = missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def session_of(model: onnx.ModelProto, **options: str) -> Any:
    """A session on the GPU with the library; raises if a dynorm node is placed elsewhere."""
    return make_session(model, provider=DEVICE, kernels=True, threads=1, provider_options=options)


def typed(node: Node, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The feeds in the node's own type."""
    return {name: array.astype(NUMPY_TYPE[node.dtype]) for name, array in feeds.items()}


def outputs(session: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(run(session, feeds).values())


def check(node: Node, got: list[np.ndarray], feeds: dict[str, np.ndarray]) -> None:
    """The function within the tolerance of its type, the sum of a Skip form to the bit."""
    expected = node.expected(feeds)
    assert got[0].shape == expected[0].shape
    assert relative_error(got[0], expected[0]) < TOLERANCE[node.dtype]
    if node.skip:
        np.testing.assert_array_equal(np.asarray(got[1], np.float64), expected[1])


@pytest.mark.parametrize("dtype", NUMPY_TYPE)
@every_operator
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("one_parameter", [True, False])
def test_agrees_with_its_definition(op_type: str, dtype: str, channels: int, one_parameter: bool) -> None:
    node = Node(op_type, dtype, channels, 1 if one_parameter else channels)
    session = session_of(model_of(node, casts=False))
    for rows in ROWS[channels]:
        feeds = node.feeds(1, rows)
        check(node, outputs(session, typed(node, feeds)), feeds)


@every_operator
@pytest.mark.parametrize("leading", [(), (1,), (2, 3, 4), (0,), (3, 0), (1, 700)])
def test_any_shape(op_type: str, leading: tuple[int, ...]) -> None:
    node = Node(op_type)
    shape: tuple[int | str | None, ...] = (*(f"axis{i}" for i in range(len(leading))), node.channels)
    feeds = node.feeds(*leading)
    check(node, outputs(session_of(model_of(node, shape=shape)), feeds), feeds)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("channels", "rows"), [(1, 700_001), (3, 300_007), (16, 300_007)])
@pytest.mark.parametrize("op_type", ["SkipDyT", "SkipCoupledDyT"])
def test_more_rows_than_blocks(op_type: str, channels: int, rows: int, dtype: str) -> None:
    """Every block comes round again, the last time with nothing to do for some threads."""
    node = Node(op_type, dtype, channels, channels)
    feeds = node.feeds(1, rows)
    check(node, outputs(session_of(model_of(node, casts=False)), typed(node, feeds)), feeds)


@pytest.mark.slow
@pytest.mark.parametrize("op_type", ["DyT", "CoupledDyT"])
def test_more_elements_than_32_bits_count(op_type: str) -> None:
    """The last rows of 2^31 + 4096 numbers, 4 GiB of bfloat16; what lies before them is whatever was in the memory."""
    node = Node(op_type, "bfloat16", 2048)
    rows, tail = 2**20 + 2, 2
    ort, size = onnxruntime(), 2
    x, y = (
        ort.OrtValue.ortvalue_from_shape_and_type([1, rows, node.channels], TensorProto.BFLOAT16, DEVICE)
        for _ in range(2)
    )
    at = (rows - tail) * node.channels * size
    feeds = node.feeds(1, tail)
    last = typed(node, feeds)["x"].view(np.uint16)
    copy = session_of(copy_of_uint16())
    binding = copy.io_binding()
    binding.bind_ortvalue_input("x", feed_value(last, DEVICE))
    binding.bind_output("y", DEVICE, 0, np.uint16, last.shape, x.data_ptr() + at)
    copy.run_with_iobinding(binding)

    session = session_of(model_of(node, casts=False))
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    session.run_with_iobinding(binding)

    binding = copy.io_binding()
    binding.bind_input("x", DEVICE, 0, np.uint16, last.shape, y.data_ptr() + at)
    binding.bind_output("y", "cpu")
    copy.run_with_iobinding(binding)
    check(node, [binding.get_outputs()[0].numpy().view(NUMPY_TYPE["bfloat16"])], feeds)


def copy_of_uint16() -> onnx.ModelProto:
    """y = x, for moving bfloat16 numbers, which numpy lacks."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "copy",
        [helper.make_tensor_value_info("x", TensorProto.UINT16, ["B", "T", "C"])],
        [helper.make_tensor_value_info("y", TensorProto.UINT16, ["B", "T", "C"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


@every_operator
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_computed_in_the_model(op_type: str, dtype: str) -> None:
    node = Node(op_type, dtype, parameter_size=48)
    feeds = node.feeds(4, 4)
    session = session_of(model_of(node, constants=False, casts=False))
    check(node, outputs(session, typed(node, feeds) | node.parameters()), feeds)


class Bytes:
    """Device memory of whole bytes, for tensors that begin anywhere in it."""

    def __init__(self, size: int) -> None:
        self.value = onnxruntime().OrtValue.ortvalue_from_numpy(np.full(size, 0xA5, np.uint8), DEVICE)

    def put(self, array: np.ndarray, at: int) -> None:
        content = self.value.numpy().copy()
        content[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
        self.value.update_inplace(content)

    def get(self, shape: tuple[int, ...], dtype: np.dtype, at: int) -> np.ndarray:
        size = int(np.prod(shape)) * dtype.itemsize
        return self.value.numpy()[at : at + size].view(dtype).reshape(shape)

    def untouched(self, at: int, size: int) -> bool:
        """Whether nothing outside of [at, at + size) was written."""
        content = self.value.numpy()
        return bool((content[:at] == 0xA5).all() and (content[at + size :] == 0xA5).all())


@pytest.mark.parametrize("dtype", NUMPY_TYPE)
@pytest.mark.parametrize("unaligned", ["x", "skip", "y", "residual", "all", "none"])
@pytest.mark.parametrize("op_type", ["SkipDyT", "SkipCoupledDyT"])
def test_tensors_that_begin_anywhere(op_type: str, dtype: str, unaligned: str) -> None:
    """A tensor may be a piece of another; what lies around it stays as it was."""
    node = Node(op_type, dtype, channels=64)
    feeds = node.feeds(1, 37)
    shape, element = feeds["x"].shape, NUMPY_TYPE[dtype]
    size = int(np.prod(shape)) * element.itemsize
    session = session_of(model_of(node, casts=False))
    binding = session.io_binding()
    places = {}
    for name in ("x", "skip", "y", "residual"):
        at = 256 + (element.itemsize if unaligned in (name, "all") else 0)
        memory = places[name] = (Bytes(size + 512), at)
        where = (name, DEVICE, 0, ONNX_TYPE[dtype], shape, memory[0].value.data_ptr() + at)
        if name in feeds:
            memory[0].put(feeds[name].astype(element), at)
            binding.bind_input(*where)
        else:
            binding.bind_output(*where)
    session.run_with_iobinding(binding)
    got = []
    for name in ("y", "residual"):
        memory, at = places[name]
        assert memory.untouched(at, size)
        got.append(memory.get(shape, element, at))
    check(node, got, feeds)


def function_alone(node: Node, x: np.ndarray, **parameters: float) -> tuple[np.ndarray, np.ndarray]:
    """f(x) with weight 1 and bias 0 on the GPU and, without infinities, in float64; x has the node's channels."""
    ones = np.ones(node.channels, NUMPY_TYPE[node.dtype])
    scalars = {name: np.array([value], np.float32) for name, value in parameters.items()}
    constants = {"weight": ones, "bias": 0 * ones, **scalars}
    (y,) = outputs(function_session(node), {"x": x, **constants})
    wide = np.clip(x.astype(np.float64), -1e100, 1e100)  # where every function has reached its limit; NaN stays
    return y.astype(np.float64), node.kind.reference(wide, **constants)


@functools.cache
def function_session(node: Node) -> Any:
    return session_of(model_of(node, constants=False, casts=False))


EXTREMES = [
    *(("DyISRU", {"beta": beta}) for beta in (1e-38, 1e-30, 1e-3, 1.0, 768.0, 1e31, 3e38)),
    *(("DyT", {"alpha": alpha}) for alpha in (1e-6, 0.02, 1.0, 1e6)),
    *(("Derf", {"alpha": alpha, "shift": shift}) for alpha in (1e-6, 1.0, 1e6) for shift in (0.0, 0.7, -0.3)),
]


@pytest.mark.parametrize(("op_type", "parameters"), EXTREMES)
def test_float32_over_its_whole_range(op_type: str, parameters: dict[str, float]) -> None:
    """Every 4099th float32, infinities and NaN among them, within 4e-7; denormal results within two denormals."""
    x = np.arange(0, 2**32 - 2**15, 4099, dtype=np.uint64).astype(np.uint32)
    x = np.concatenate([x, np.array([np.inf, -np.inf, np.nan, 0, -0.0, 3.4e38, -1e-45], np.float32).view(np.uint32)])
    values = np.resize(x, (1, -(-x.size // 8), 8)).view(np.float32)
    y, expected = function_alone(Node(op_type, channels=8), values, **parameters)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(values))
    known = ~np.isnan(values)
    error = np.abs(y - expected)[known]
    scale = np.abs(expected)[known]
    denormal = 2.0**-149
    worst = float((np.maximum(error - 2 * denormal, 0) / np.maximum(scale, denormal)).max())
    print(f"\n{op_type} {parameters}: largest relative error {worst:.3g}")
    assert worst < 4e-7


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("op_type", "parameters"), EXTREMES)
def test_every_value_of_the_16_bit_types(op_type: str, parameters: dict[str, float], dtype: str) -> None:
    """Within one unit in the last place; NaN stays NaN, infinities are at the limits."""
    values = np.arange(2**16, dtype=np.uint16).view(NUMPY_TYPE[dtype]).reshape(1, -1, 8)
    y, expected = function_alone(Node(op_type, dtype, channels=8), values, **parameters)
    unit, smallest = {"float16": (2.0**-10, 2.0**-24), "bfloat16": (2.0**-7, 2.0**-133)}[dtype]
    nan = np.isnan(values.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(y), nan)
    assert (np.abs(y - expected)[~nan] <= np.maximum(unit * np.abs(expected), smallest)[~nan]).all()


def test_results_too_large_for_float16_are_infinite() -> None:
    node = Node("DyT", "float16", channels=8)
    session = session_of(model_of(node, constants=False, casts=False))
    large = np.full(8, 60000, np.float16)
    x = np.linspace(-8, 8, 64, dtype=np.float16).reshape(1, 8, 8)
    (y,) = outputs(session, {"x": x, "weight": large, "bias": large, "alpha": np.ones(1, np.float32)})
    wide = 60000.0 * np.tanh(x.astype(np.float64)) + 60000.0
    np.testing.assert_array_equal(np.isinf(y), wide >= 65520)
    finite = wide < 65520
    assert relative_error(y[finite], wide[finite]) < TOLERANCE["float16"]


def test_sums_too_large_for_float16_are_infinite() -> None:
    node = Node("SkipDerf", "float16", channels=8)
    x = np.array([65504, -65504, 65504, 1, np.inf, -np.inf, np.inf, np.nan], np.float16).reshape(1, 1, 8)
    skip = np.array([65504, -65504, -65504, 2, 1, 1, -np.inf, 1], np.float16).reshape(1, 1, 8)
    _, residual = outputs(session_of(model_of(node, casts=False)), {"x": x, "skip": skip})
    np.testing.assert_array_equal(residual.reshape(-1), [np.inf, -np.inf, 0, 3, np.inf, -np.inf, np.nan, np.nan])


@pytest.mark.parametrize("op_type", SKIP_FORMS)
def test_chains_share_buffers_safely(op_type: str) -> None:
    check_chain(op_type, session_of)


@pytest.mark.parametrize("dtype", NUMPY_TYPE)
@every_operator
def test_nothing_leaves_the_device(op_type: str, dtype: str) -> None:
    """The node is placed there, no copy is put around it, and its bound outputs lie there."""
    node = Node(op_type, dtype)
    session = session_of(model_of(node, with_body=True, casts=False))
    nodes = placement(session)
    if nodes is None:
        pytest.skip("this ONNX Runtime does not tell")
    assert [(placed.op_type, placed.provider) for placed in nodes] == [(node.op_type, EP)]
    binding = session.io_binding()
    for name, array in typed(node, node.feeds(2, 5)).items():
        binding.bind_ortvalue_input(name, feed_value(array, DEVICE))
    for output in session.get_outputs():
        binding.bind_output(output.name, DEVICE)
    session.run_with_iobinding(binding)
    assert {value.device_name() for value in binding.get_outputs()} <= {DEVICE, "gpu"}


@pytest.mark.parametrize("op_type", SKIP_FORMS)
def test_a_captured_graph_follows_its_inputs(op_type: str) -> None:
    """CUDA graphs: what was captured once computes what lies in the bound memory at each run."""
    node = Node(op_type, channels=256)
    session = session_of(chain_of(node, 3), enable_cuda_graph="1")
    plain = session_of(chain_of(node, 3))
    feeds = node.feeds(2, 16)
    values = {name: feed_value(array, DEVICE) for name, array in feeds.items()}
    results = [feed_value(np.zeros_like(feeds["x"]), DEVICE) for _ in range(2)]
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in zip(("y", "residual"), results, strict=True):
        binding.bind_ortvalue_output(name, value)
    for scale in (1.0, -0.5, 2.0):
        changed = {name: (scale * array).astype(np.float32) for name, array in feeds.items()}
        for name, array in changed.items():
            values[name].update_inplace(array)
        session.run_with_iobinding(binding)
        for value, expected in zip(results, plain.run(None, changed), strict=True):
            np.testing.assert_array_equal(value.numpy(), expected)


def between_products(node: Node, size: int) -> onnx.ModelProto:
    """((x A) -> node -> B) of float32 [N, size]: heavy work before and after it on the session's stream."""
    random = np.random.default_rng(0)
    matrices = {name: (random.normal(size=(size, size)) / np.sqrt(size)).astype(np.float32) for name in "AB"}
    parameters = node.parameters()
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "A"], ["product"]),
            helper.make_node(node.op_type, ["product", *parameters], ["function"], domain=DOMAIN),
            helper.make_node("MatMul", ["function", "B"], ["y"]),
        ],
        "between_products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", size])],
        [numpy_helper.from_array(value, name) for name, value in (parameters | matrices).items()],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)


@pytest.mark.parametrize("op_type", ["DyISRU", "CoupledDyISRU"])
def test_it_waits_for_what_comes_before_it(op_type: str) -> None:
    """On the session's own stream, in two sessions at once: large products before and after the node."""
    node = Node(op_type, channels=2048)
    model = between_products(node, 2048)
    sessions = [session_of(model, use_tf32="0") for _ in range(2)]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    inputs = [3 * np.random.default_rng(i).normal(size=(512, 2048)).astype(np.float32) for i in range(2)]
    expected = [
        node.function_of(x.astype(np.float64) @ constants["A"], node.parameters()) @ constants["B"] for x in inputs
    ]
    worst = [0.0, 0.0]

    def repeat(i: int) -> None:
        for _ in range(20):
            (y,) = sessions[i].run(None, {"x": inputs[i]})
            worst[i] = max(worst[i], relative_error(y, expected[i]))

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < max(worst) < 10 * TOLERANCE["float32"]


@every_coupled
@pytest.mark.parametrize("dtype", NUMPY_TYPE)
@pytest.mark.parametrize(("channels", "coupled"), [(3, 1), (100, 31), (768, 33), (5000, 32), (300, 300)])
def test_any_number_of_coupled_channels(op_type: str, dtype: str, channels: int, coupled: int) -> None:
    """Less than a warp takes at once, more, and all; rows that one block covers in one step, and in several."""
    node = Node(op_type, dtype, channels, channels, coupled)
    session = session_of(model_of(node, casts=False))
    for rows in (1, 2, 33, 1003):
        feeds = node.feeds(1, rows)
        check(node, outputs(session, typed(node, feeds)), feeds)


@pytest.mark.parametrize("outside", [-1, 8, 2**40])
def test_a_channel_that_is_none_gives_nan(outside: int) -> None:
    """The indices lie on the device, where nobody can raise."""
    node = Node("CoupledDyT", channels=8, coupled=2)
    parameters = node.parameters() | {"channels": np.array([1, outside], np.int64)}
    (y,) = outputs(session_of(model_of(node, constants=False)), node.feeds(1, 3) | parameters)
    assert np.isnan(y).all()


def test_wrong_shapes_are_named() -> None:
    node = Node("Derf")
    parameters = node.parameters() | {"shift": np.ones(7, np.float32)}
    session = session_of(model_of(node, constants=False))
    with pytest.raises(Exception, match=r"dynorm::Derf: input shift has shape \[7\]"):
        session.run(None, node.feeds(2, 3) | parameters)


@pytest.mark.slow
@pytest.mark.parametrize(("function", "optimize"), [*((name, "none") for name in REGISTRY), ("dyisru", "ort")])
def test_the_shipped_model(function: str, optimize: str, tmp_path: Path) -> None:
    """Converted, on the GPU with kernels, and on the CPU by the bodies."""
    path = tmp_path / "converted.onnx"
    data: dict[str, Any] = {"data": TEXT, "samples": 8, "max_length": 64}
    convert_model(
        MODEL, to=function, output=path, method="fit", optimize=optimize, time=False, validate=False,
        rotate=False, **data,
    )  # fmt: skip
    on_cpu = make_session(path, kernels=False)
    on_gpu = make_session(path, provider=DEVICE, kernels=True, provider_options={"use_tf32": "0"})
    nodes = placement(on_gpu)
    if nodes is not None:
        ours = [node for node in nodes if node.domain == DOMAIN]
        assert len(ours) == NORMS and {node.provider for node in ours} == {EP}
    for shape in ((1, 1), (1, 40), (3, 100)):
        tokens = {"input_ids": np.random.default_rng(shape[1]).integers(0, 256, shape)}
        (expected,), (got,) = run(on_cpu, tokens).values(), run(on_gpu, tokens).values()
        assert relative_error(got, expected) < 1e-4

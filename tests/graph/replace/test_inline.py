"""Files without functions: what stands for a norm then, how few operators, and that it computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from dynorm_onnx.errors import ModelError
from dynorm_onnx.functions import DOMAIN, FORMS, REGISTRY, Coupling, Form, Function, onnx_function
from dynorm_onnx.functions.dyisru import DYISRU
from dynorm_onnx.graph.files.model_io import prepare
from dynorm_onnx.graph.lower import lower
from dynorm_onnx.graph.replace.inline import inlined
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.runtime.session import runnable
from tests.builders.convert import replaced
from tests.builders.execute import run_model, run_ort
from tests.builders.holders import in_if, in_loop, in_scan
from tests.builders.installed import each_opset
from tests.functions.test_body import CHANNELS, TYPES, every_function
from tests.tolerances import TOLERANCE, relative_error

ONES, ZEROS = np.ones(CHANNELS, np.float32), np.zeros(CHANNELS, np.float32)
RANGES = {"beta": (1.0, 30.0), "alpha": (0.05, 0.4), "shift": (-0.3, 0.3)}


def parameters(function: Function, size: int, form: Form, rng: np.random.Generator) -> dict[str, np.ndarray]:
    given = {name: rng.uniform(*RANGES[name], size).astype(np.float32) for name in function.parameter_names}
    if form.coupled:
        given |= {"channels": np.array([5, 0, 23]), "coupling": np.array([0.5, 0.015625, 0.125], np.float32)}
    return given


def one_node(
    function: Function, form: Form, opset: int, dtype: str, constants: dict[str, np.ndarray], before: str = ""
) -> onnx.ModelProto:
    """X (and skip) -> the function; `before` is an operator that X goes through first."""
    element_type, _ = TYPES[dtype]
    data, outputs = (["X", "skip"], ["Y", "residual"]) if form.skip else (["X"], ["Y"])
    nodes = [helper.make_node(before, ["X"], ["bounded"])] if before else []
    inputs = ["bounded" if before and name == "X" else name for name in (*data, *constants)]
    nodes.append(helper.make_node(function.node_type(form), inputs, outputs, domain=DOMAIN, name="site.norm"))
    shape = ["batch", "tokens", CHANNELS]
    graph = helper.make_graph(
        nodes, "one_function",
        [helper.make_tensor_value_info(name, element_type, shape) for name in data],
        [helper.make_tensor_value_info(name, element_type, shape) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        functions=[onnx_function(function, opset, element_type, form)],
    )  # fmt: skip
    return onnx.shape_inference.infer_shapes(model)


def written_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """The inlined model, which must be whole and standard."""
    proto = standard(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def standard(model: onnx.ModelProto) -> onnx.ModelProto:
    proto = ir.to_proto(inlined(ir.from_proto(model)))
    assert not proto.functions
    assert {entry.domain for entry in proto.opset_import} == {""}
    return proto


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@every_function
@pytest.mark.parametrize("form", FORMS, ids=lambda form: DYISRU.node_type(form))
@pytest.mark.parametrize("size", [1, CHANNELS], ids=["scalar", "per-channel"])
@each_opset(9, 11, 13, 15, 20, 23)
@pytest.mark.parametrize("dtype", TYPES)
def test_it_computes_what_the_function_does(function: Function, form: Form, size: int, opset: int, dtype: str) -> None:
    if dtype == "bfloat16" and opset < 13:
        pytest.skip("bfloat16 came to the operators with opset 13")
    if dtype == "double" and function.name == "derf" and opset < 11:
        pytest.skip("the error function in double needs opset 11")
    rng, numpy_type = np.random.default_rng(opset), TYPES[dtype][1]
    weights = {name: rng.normal(size=CHANNELS).astype(numpy_type) for name in ("weight", "bias")}
    model = one_node(function, form, opset, dtype, weights | parameters(function, size, form, rng))
    names = ("X", "skip") if form.skip else ("X",)
    feeds = {name: rng.normal(0, 4, (2, 5, CHANNELS)).astype(numpy_type) for name in names}
    for found, wanted in zip(run_model(written_out(model), feeds), run_model(model, feeds), strict=True):
        assert found.dtype == wanted.dtype
        assert relative_error(found, wanted) < TOLERANCE[dtype]


PLAIN, COUPLED, SKIP = Form(), Form(coupled=True), Form(skip=True)
CORE = {"dyisru": ["Mul", "Add", "Sqrt", "Div"], "dyt": ["Mul", "Tanh"], "derf": ["Mul", "Add", "Erf"]}
GAIN = ["Gather", "Mul", "Mul", "ReduceSum", "Add"]  # 1 + sum_j c_j x_j^2


@every_function
def test_what_would_do_nothing_is_left_out(function: Function) -> None:
    def of(weight: np.ndarray, bias: np.ndarray, form: Form = PLAIN, **given: np.ndarray) -> list[str]:
        constants = parameters(function, 1, form, np.random.default_rng(0)) | given
        model = one_node(function, form, 18, "float32", {"weight": weight, "bias": bias} | constants, before="Tanh")
        return operators(written_out(model))[1:]

    core = CORE[function.name]
    assert of(ONES, ZEROS) == core
    assert of(ONES, ONES) == [*core, "Add"]
    assert of(2 * ONES, ZEROS) == [*core, "Mul"]
    assert of(2 * ONES, ONES) == [*core, "Mul", "Add"]
    if function.name != "dyisru":
        assert of(ONES, ZEROS, alpha=ONES[:1]) == core[1:]
    if function.name == "derf":
        assert of(ONES, ZEROS, shift=ZEROS[:1]) == ["Mul", "Erf"]
        assert of(ONES, ZEROS, alpha=ONES, shift=ZEROS) == ["Erf"]


def test_the_gain_shares_the_root_and_the_factor() -> None:
    """g x by itself is two operators more than the sum behind it: a root and a quotient."""

    def of(function: Function, size: int) -> list[str]:
        constants = parameters(function, size, COUPLED, np.random.default_rng(0))
        weights = {"weight": ONES, "bias": ZEROS}
        return operators(written_out(one_node(function, COUPLED, 18, "float32", weights | constants, "Tanh")))[1:]

    dyisru, dyt, derf = (REGISTRY[name] for name in ("dyisru", "dyt", "derf"))
    assert Counter(of(dyisru, 1)) == Counter([*GAIN, *CORE["dyisru"]])
    assert Counter(of(dyisru, CHANNELS)) == Counter([*GAIN, "Mul", *CORE["dyisru"]])
    assert of(dyt, 1) == [*GAIN, "Sqrt", "Div", "Tanh"]
    assert of(derf, CHANNELS) == [*GAIN, "Sqrt", "Div", "Mul", "Add", "Erf"]


@pytest.mark.parametrize("form", [PLAIN, COUPLED], ids=lambda form: DYISRU.node_type(form))
@pytest.mark.parametrize(
    ("dtype", "before", "clips"), [("float32", "", 1), ("float32", "Tanh", 0), ("float16", "", 0), ("bfloat16", "", 1)]
)
def test_only_what_may_be_too_large_is_clipped(form: Form, dtype: str, before: str, clips: int) -> None:
    weights = {"weight": ONES, "bias": ZEROS}
    if dtype != "float32":
        weights = {name: array.astype(TYPES[dtype][1]) for name, array in weights.items()}
    given = parameters(DYISRU, 1, form, np.random.default_rng(0))
    model = one_node(DYISRU, form, 18, dtype, weights | given, before)
    assert operators(written_out(model)).count("Clip") == clips * (1 + form.coupled)


@pytest.mark.parametrize("coupling", [0.5, 1e10], ids=["usual", "beyond what the one root holds"])
def test_values_as_large_as_they_get(coupling: float) -> None:
    given = parameters(DYISRU, 1, COUPLED, np.random.default_rng(0))
    given["coupling"] = np.full(3, coupling, np.float32)
    model = one_node(DYISRU, COUPLED, 18, "float32", {"weight": ONES, "bias": ZEROS} | given)
    x = np.random.default_rng(1).normal(size=(1, 6, CHANNELS)).astype(np.float32)
    x *= np.array([1e-30, 1, 1e6, 1e14, 1e15, 1e15], np.float32)[:, None]
    x[0, 5, 7] = 3e38
    x[0, 5, 5] = x[0, 5, 0] = x[0, 5, 23] = 1
    found, wanted = (run_model(one, {"X": x})[0] for one in (written_out(model), model))
    assert np.isfinite(found).all()
    assert relative_error(found, wanted) < TOLERANCE["float32"]


def test_parameters_that_a_run_computes_leave_the_body() -> None:
    """Nothing can be left out then; the body is inlined as it is."""
    given = parameters(DYISRU, 1, PLAIN, np.random.default_rng(0))
    model = one_node(DYISRU, PLAIN, 18, "float32", {"weight": ONES, "bias": ZEROS} | given)
    model.graph.initializer.remove(next(tensor for tensor in model.graph.initializer if tensor.name == "weight"))
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [CHANNELS]))
    proto = written_out(model)
    assert "Clip" in operators(proto) and operators(proto)[-3:] == ["Mul", "Add", "CastLike"]
    feeds = {"X": np.random.default_rng(1).normal(size=(1, 3, CHANNELS)).astype(np.float32), "weight": 3 * ONES}
    assert relative_error(run_model(proto, feeds)[0], run_model(model, feeds)[0]) < TOLERANCE["float32"]


@every_function
@pytest.mark.parametrize("holder", [in_if, in_loop, in_scan], ids=lambda builder: builder.__name__)
@pytest.mark.parametrize("opset", [11, 18])
def test_norms_in_bodies(function: Function, holder: Callable, opset: int) -> None:
    built = holder(opset)
    prepared = prepare(ir.from_proto(built.model()))
    norms = lower(prepared, find_sites(prepared, load=runnable).sites)
    model = replaced(prepared, norms, function.name)
    assert any(node.domain == DOMAIN for graph in ir.from_proto(model).graphs() for node in graph)
    for found, wanted in zip(run_ort(standard(model), built.feeds), run_ort(model, built.feeds), strict=True):
        assert relative_error(found, wanted) < TOLERANCE["float32"]


def test_functions_of_others_are_inlined_too() -> None:
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18, "theirs" : 1]>
        g (float[n,4] x) => (float[n,4] y) { y = theirs.Twice(x) }
        <domain: "theirs", opset_import: ["" : 18]>
        Twice (x) => (y) { y = Add(x, x) }"""
    )
    assert operators(written_out(model)) == ["Add"]


def test_a_function_that_calls_itself() -> None:
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18, "theirs" : 1]>
        g (float[n,4] x) => (float[n,4] y) { y = theirs.Again(x) }
        <domain: "theirs", opset_import: ["" : 18, "theirs" : 1]>
        Again (x) => (y) { y = theirs.Again(x) }"""
    )
    with pytest.raises(ModelError, match=r"a function of the file cannot be inlined: .*theirs::Again"):
        inlined(ir.from_proto(model))


def test_a_coupling_of_no_token_is_the_function_itself() -> None:
    """The reference of coupling.py, not the body, says what is right."""
    rng = np.random.default_rng(3)
    given = parameters(DYISRU, CHANNELS, COUPLED, rng)
    model = one_node(DYISRU, COUPLED, 20, "double", {"weight": ONES.astype(float), "bias": ZEROS.astype(float)} | given)
    x = rng.normal(0, 30, (2, 4, CHANNELS))
    gained = Coupling(given["channels"], given["coupling"].astype(np.float64)).applied(x)
    expected = DYISRU.reference(gained, ONES, ZEROS, beta=given["beta"])
    assert relative_error(run_model(written_out(model), {"X": x})[0], expected) < TOLERANCE["double"]


def test_one_coupled_channel_needs_no_sum() -> None:
    given = parameters(DYISRU, 1, COUPLED, np.random.default_rng(0))
    given |= {"channels": given["channels"][:1], "coupling": given["coupling"][:1]}
    model = one_node(DYISRU, COUPLED, 18, "float32", {"weight": ONES, "bias": ZEROS} | given, "Tanh")
    assert Counter(operators(written_out(model))) == Counter(["Tanh", "Gather", "Mul", "Mul", "Add", *CORE["dyisru"]])
    x = np.random.default_rng(1).normal(size=(1, 3, CHANNELS)).astype(np.float32)
    assert relative_error(*(run_model(m, {"X": x})[0] for m in (written_out(model), model))) < TOLERANCE["float32"]

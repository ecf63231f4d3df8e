"""Whole graphs in PyTorch: types, weights, functions, control flow, checkpointing, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from dynorm_onnx.errors import DataError, ModelError
from dynorm_onnx.functions import OPERATORS, onnx_function
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.replace.rewrite import set_initializers
from dynorm_onnx.runtime.session import make_session
from tests.tolerances import TOLERANCE, relative_error

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")

from dynorm_onnx.pytorch.graph import GraphModule  # noqa: E402
from tests.pytorch.graph.case import Case  # noqa: E402

BYTE_LLAMA = Path(__file__).parents[3] / "models" / "byte_llama" / "byte_llama.onnx"


@pytest.fixture(scope="module")
def llama() -> ir.Model:
    return model_io.load(BYTE_LLAMA)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))


def parsed(text: str, **weights: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def test_an_exported_model_gives_what_onnxruntime_gives(llama: ir.Model, ids: torch.Tensor) -> None:
    with torch.no_grad():
        logits = GraphModule(llama)(input_ids=ids)["logits"].numpy()
    (expected,) = make_session(BYTE_LLAMA).run(None, {"input_ids": ids.numpy()})
    assert relative_error(logits, expected) < 5 * TOLERANCE["float32"]


def test_weights_are_told_from_constants(llama: ir.Model) -> None:
    module = GraphModule(llama)
    assert sum(parameter.numel() for parameter in module.learned().values()) == 1_322_400  # as metrics.json says
    left = {name for name in llama.graph.initializers if name not in module.learned()}
    assert "model.rotary_emb.inv_freq" in left
    assert not [name for name in left if "layers" in name]


def test_checkpointing_changes_neither_values_nor_gradients(llama: ir.Model, ids: torch.Tensor) -> None:
    plain, parted = GraphModule(llama), GraphModule(llama, checkpointing=True)
    assert len(parted._segments) > 8
    results = []
    for module in (plain, parted):
        logits = module(input_ids=ids)["logits"]
        logits.square().mean().backward()
        results.append((logits, [parameter.grad for parameter in module.learned().values()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_checkpointing_keeps_less(llama: ir.Model, ids: torch.Tensor) -> None:
    kept = []
    for checkpointing in (False, True):
        total = [0]

        def count(tensor: torch.Tensor, total: list[int] = total) -> torch.Tensor:
            total[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            GraphModule(llama, checkpointing=checkpointing)(input_ids=ids)
        kept.append(total[0])
    assert kept[1] < kept[0] / 4


def model_of(op: str, kind: str = "float32") -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """One of our operators, and arrays by the names of its inputs: data are the model's, others initializers."""
    function, form = OPERATORS[op]
    rng = np.random.default_rng(3)
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    arrays = {"X": rng.standard_normal((4, 8)) * 3, "skip": rng.standard_normal((4, 8)),
              "weight": rng.standard_normal(8), "bias": rng.standard_normal(8)}  # fmt: skip
    arrays = {key: array.astype(kind) for key, array in arrays.items()}
    arrays |= {key: rng.uniform(0.5, 2, 8).astype(np.float32) for key in function.parameter_names}
    arrays |= {"channels": np.array([6, 0, 3]), "coupling": np.array([0.3, 1e-6, 0.02], np.float32)}
    names, data = function.input_names(form), ["X", "skip"][: 1 + form.skip]
    outputs = ["Y", "residual"][: 1 + form.skip]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, names, outputs, name="n", domain="dynorm")], "g",
        [onnx.helper.make_tensor_value_info(key, element, [4, 8]) for key in data],
        [onnx.helper.make_tensor_value_info(key, element, [4, 8]) for key in outputs],
        [onnx.numpy_helper.from_array(arrays[key], key) for key in names if key not in data],
    )  # fmt: skip
    imports = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("dynorm", 1)]
    bodies = [onnx_function(function, 18, element, form)]
    proto = onnx.helper.make_model(graph, opset_imports=imports, functions=bodies, ir_version=8)
    return proto, {key: arrays[key] for key in names}


@pytest.mark.parametrize("op", [*OPERATORS])
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_our_functions_give_what_their_bodies_give(op: str, kind: str) -> None:
    proto, arrays = model_of(op, kind)
    feeds = {key: arrays[key] for key in ("X", "skip") if key in arrays}
    module = GraphModule(ir.from_proto(proto))
    with torch.no_grad():
        found = module(**{key: torch.from_numpy(array) for key, array in feeds.items()})
    for expected, tensor in zip(make_session(proto, kernels=False).run(None, feeds), found.values(), strict=True):
        assert relative_error(tensor.numpy(), expected) < TOLERANCE[kind]
    trained = [key for key in arrays if key not in ("X", "skip", "channels")]
    inside = module.initializers(trained)  # alpha, beta and coupling come back from their logarithms
    assert all(relative_error(inside[key], arrays[key]) < 1e-6 for key in inside)
    assert set(module.learned()) == set(trained) and len(module.norm_parameters()) == len(trained)


@pytest.mark.parametrize("op", [*OPERATORS])
def test_gradients_of_our_functions_are_those_of_finite_differences(op: str) -> None:
    """Of data and parameters, strengths of coupled channels among them."""
    _, arrays = model_of(op)
    assert Case(op, list(arrays.values()), domain="dynorm", outputs=1 + OPERATORS[op][1].skip).gradients_agree()


def test_a_strength_of_zero_stays_zero() -> None:
    proto, arrays = model_of("CoupledDyISRU")
    arrays["coupling"][1] = 0
    model = ir.from_proto(proto)
    set_initializers(model, {"coupling": arrays["coupling"]})
    module = GraphModule(model)
    module(X=torch.from_numpy(arrays["X"]))["Y"].square().sum().backward()
    gradient = module.learned()["coupling"].grad
    assert gradient is not None and gradient.isfinite().all() and gradient[1] == 0 and gradient[0] != 0
    np.testing.assert_allclose(module.initializers(["coupling"])["coupling"], arrays["coupling"], rtol=1e-6)


SHARED = """
<ir_version: 8, opset_import: ["": 18, "local": 1]>
tied (int64[n] ids, float[n, 4] x) => (float[n, 6] logits) {
    embedded = Gather(table, ids)
    sum = Add(embedded, x)
    scaled = Mul(sum, scale)
    wide = local.twice(scaled)
    turned = Transpose<perm = [1, 0]>(table)
    logits = MatMul(wide, turned)
}
<domain: "local", opset_import: ["": 18]>
twice (a) => (b) { b = Add(a, a) }
"""


def tied(kind: type) -> ir.Model:
    rng = np.random.default_rng(0)
    text = SHARED if kind is np.float32 else SHARED.replace("float[", "float16[")
    return parsed(text, table=rng.standard_normal((6, 4)).astype(kind), scale=rng.uniform(1, 2, 4).astype(kind))


def test_a_shared_weight_is_one_parameter_and_goes_back_in_its_own_type() -> None:
    module = GraphModule(tied(np.float16), float_type=torch.float32)
    assert set(module.learned()) == {"table", "scale"}
    ids, x = torch.tensor([1, 5]), torch.randn(2, 4)
    module(ids=ids, x=x)["logits"].sum().backward()
    gradient = module.learned()["table"].grad
    assert gradient is not None and gradient.dtype == torch.float32
    assert not torch.equal(gradient[1], gradient[0]), "rows that ids name have a part of their own"
    arrays = module.initializers()
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}
    assert np.array_equal(arrays["table"], tied(np.float16).graph.initializers["table"].const_value.numpy())


LOOP = """
<ir_version: 8, opset_import: ["": 18]>
repeated (float[2] x, int64 trips) => (float[2] y, float[k, 2] each) {
    going = Constant<value_int = 1>()
    truth = Cast<to = 9>(going)
    y, each = Loop(trips, truth, x) <body =
        body (int64 i, bool c, float[2] state) => (bool on, float[2] next, float[2] seen) {
        on = Identity(c)
        next = Mul(state, factor)
        seen = Add(next, x)
    }>
}
"""
BRANCH = """
<ir_version: 8, opset_import: ["": 18]>
chosen (float[2] x) => (float[2] y) {
    sum = ReduceSum<keepdims = 0>(x)
    zero = Constant<value_float = 0.0>()
    positive = Greater(sum, zero)
    y = If(positive) <then_branch = yes () => (float[2] a) { a = Mul(x, factor) },
                      else_branch = no () => (float[2] b) { b = Sub(x, factor) }>
}
"""


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("text", [LOOP, BRANCH], ids=["loop", "branch"])
def test_bodies_run_and_see_the_values_around_them(text: str, sign: float) -> None:
    model = parsed(text, factor=np.array([1.5, -0.5], np.float32))
    feeds = {"x": sign * np.array([1.0, 2.0], np.float32)}
    if text is LOOP:
        feeds["trips"] = np.array(3, np.int64)
    with torch.no_grad():
        found = GraphModule(model)(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    for expected, tensor in zip(make_session(model).run(None, feeds), found.values(), strict=True):
        assert np.allclose(tensor.numpy(), expected)


def test_an_operator_that_is_missing_is_named_with_its_node_and_opset() -> None:
    model = parsed(
        '<ir_version: 8, opset_import: ["": 18]> g (float[4, 4] x) => (float y) { y = Det(x) }',
    )
    model.graph.node(0).name = "the determinant"
    with pytest.raises(ModelError, match=r"ai\.onnx::Det, opset 18 \(1 node: 'the determinant'\)"):
        GraphModule(model)


def test_an_input_that_is_missing_and_shapes_that_do_not_fit_are_named() -> None:
    module = GraphModule(tied(np.float32))
    with pytest.raises(DataError, match="'x'"):
        module(ids=torch.tensor([1]))
    with pytest.raises(ModelError, match=r"Add.*\(2, 4\), \(3, 4\)"):
        module(ids=torch.tensor([1, 2]), x=torch.randn(3, 4))

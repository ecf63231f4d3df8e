"""Every operator against ONNX Runtime in values, and against finite differences in gradients."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.builders.execute import run_ort
from tests.tolerances import TOLERANCE, relative_error

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")

from dynorm_onnx.pytorch.graph import GraphModule  # noqa: E402
from tests.pytorch.graph import cases_attention, cases_elementwise, cases_layers, cases_shapes  # noqa: E402
from tests.pytorch.graph.case import Case  # noqa: E402

CASES = [*cases_elementwise.CASES, *cases_shapes.CASES, *cases_layers.CASES, *cases_attention.CASES]
WITH_FLOATS = [c for c in CASES if c.gradient and any(a is not None and a.dtype == np.float32 for a in c.inputs)]
IN_HALF = [c for c in (*cases_layers.NORMS, *cases_attention.GROUPED_QUERY) if c.op != "LpNormalization"]


def case_id(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_values_are_those_of_onnxruntime(case: Case) -> None:
    expected, found = case.in_onnxruntime(), case.in_pytorch()
    assert len(expected) == len(found) == (case.compared or case.outputs)
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        if one.dtype.kind == "f":
            tolerance = TOLERANCE[one.dtype.name] * 4  # sums in another order
            assert np.array_equal(np.isfinite(one), np.isfinite(other))
            assert relative_error(np.nan_to_num(other), np.nan_to_num(one)) < tolerance
        else:
            assert np.array_equal(one, other)


def test_packed_heads_are_those_given_one_by_one() -> None:
    """ONNX Runtime takes packed q, k, v on CUDA only."""
    packed = np.random.default_rng(0).standard_normal((2, 3, 4, 3, 16)).astype(np.float32)
    q, k, v = (packed[:, :, :, place].reshape(2, 3, 64) for place in range(3))
    (one,), (other,), (third,) = (
        Case("MultiHeadAttention", inputs, {"num_heads": 4}, domain="com.microsoft").in_pytorch()
        for inputs in ([packed], [q, packed[:, :, :, 1:].copy()], [q, k, v])
    )
    assert np.array_equal(one, other) and np.array_equal(one, third)


def test_rows_of_an_int4_table_are_those_of_onnxruntime() -> None:
    """A table of int4 cannot be fed, so it is an initializer here."""
    rng = np.random.default_rng(4)
    table = ir.tensor(rng.integers(-8, 8, (6, 40)).astype(ml_dtypes.int4), name="table")
    scales, points = rng.uniform(0.1, 1, (6, 3)).astype(np.float32), rng.integers(-8, 8, (6, 3)).astype(ml_dtypes.int4)
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([2, 2]))
    weights = [
        ir.Value(name=t.name, const_value=t, type=ir.TensorType(t.dtype), shape=ir.Shape(t.shape.numpy()))
        for t in (table, ir.tensor(scales, name="scales"), ir.tensor(points, name="points"))
    ]
    attributes = {"block_size": 16, "gather_axis": 0, "quantize_axis": 1}
    node = ir.node("GatherBlockQuantized", [weights[0], ids, *weights[1:]], attributes, domain="com.microsoft")
    node.outputs[0].name, node.outputs[0].type = "rows", ir.TensorType(ir.DataType.FLOAT)
    opsets = {"": 21, "com.microsoft": 1}
    graph = ir.Graph([ids], node.outputs, nodes=[node], initializers=weights, opset_imports=opsets, name="g")
    model = ir.Model(graph, ir_version=10)
    feeds = {"ids": np.array([[0, 5], [-1, 2]])}
    found = GraphModule(model)(ids=torch.from_numpy(feeds["ids"]))["rows"]
    assert not found.requires_grad
    assert relative_error(found.numpy(), run_ort(ir.to_proto(model), feeds)[0]) < TOLERANCE["float32"]


@pytest.mark.parametrize("case", WITH_FLOATS, ids=case_id)
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    assert case.gradients_agree()


@pytest.mark.parametrize("case", IN_HALF, ids=case_id)
def test_half_precision_is_rounded_as_in_onnxruntime(case: Case) -> None:
    inputs = [a.astype(np.float16) if a is not None and a.dtype == np.float32 else a for a in case.inputs]
    half = dataclasses.replace(case, inputs=inputs)
    try:
        expected = half.in_onnxruntime()
    except Exception as error:
        pytest.skip(f"ONNX Runtime has no kernel in float16 for this: {str(error)[:80]}")
    for one, other in zip(expected, half.in_pytorch(), strict=True):
        assert one.dtype == other.dtype
        assert relative_error(other, one) < TOLERANCE["float16"] * 2


@pytest.mark.parametrize("hidden", [False, True], ids=["none hidden", "one token sees none"])
def test_the_guard_of_exported_attention_keeps_values_and_gradients(hidden: bool) -> None:
    """Where(IsNaN(p), 0, p) behind a Softmax: IsNaN answers for all at once where there is none."""
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20]>
        guard (float[2, 3, 5] scores, float[3, 5] mask) => (float[2, 3, 5] y) <float zero = {0}> {
            shown = Add(scores, mask)
            p = Softmax(shown)
            none = IsNaN(p)
            y = Where(none, zero, p)
        }""")
    rng = np.random.default_rng(5)
    feeds = {"scores": rng.standard_normal((2, 3, 5)).astype(np.float32), "mask": np.zeros((3, 5), np.float32)}
    if hidden:
        feeds["mask"][1] = -np.inf
    tensors = {name: torch.from_numpy(array).requires_grad_(name == "scores") for name, array in feeds.items()}
    y = GraphModule(ir.from_proto(proto))(**tensors)["y"]
    assert relative_error(y.detach().numpy(), run_ort(proto, feeds)[0]) < TOLERANCE["float32"]
    shown = [row for row in range(3) if not (hidden and row == 1)]
    direction = torch.from_numpy(rng.standard_normal((2, 3, 5)).astype(np.float32))
    (y[:, shown] * direction[:, shown]).sum().backward()
    gradient = tensors["scores"].grad[:, shown].double()
    p = torch.softmax(torch.from_numpy(feeds["scores"][:, shown]).double(), -1)
    g = direction[:, shown].double()
    wanted = p * (g - (p * g).sum(-1, keepdim=True))
    assert relative_error(gradient.numpy(), wanted.numpy()) < TOLERANCE["float32"] * 4

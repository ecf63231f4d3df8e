"""Concats of weights are weights; of anything else they stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from dynorm_onnx.graph.linear.joined_weights import join_weights
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import make_session

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def model_of(body: str, output: str = "y") -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[n, 4] x) => (float {output}) {{ {body} }}'
    )
    rng = np.random.default_rng(1)
    for name in ("q", "k", "v"):
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(size=(4, 2)).astype(np.float32), name))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return ir.from_proto(proto)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(("axis", "shape"), [(0, (12, 2)), (1, (4, 6)), (-1, (4, 6))])
def test_weights_are_joined_and_nothing_is_left_behind(axis: int, shape: tuple[int, int]) -> None:
    read = "y = MatMul(x, w)" if shape[0] == 4 else "s = Shape(w) f = Cast<to=1>(s) m = ReduceSum(f) y = Mul(x, m)"
    model = model_of(f"w = Concat<axis={axis}>(q, k, v) {read}")
    before = run(make_session(model), {"x": X})["y"]
    join_weights(model.graph)
    assert "Concat" not in operators(model) and set(model.graph.initializers) == {"w"}
    assert tuple(model.graph.initializers["w"].shape.numpy()) == shape
    assert np.array_equal(run(make_session(model), {"x": X})["y"], before)


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ("w = Concat<axis=1>(q, k, v) y = MatMul(x, w) z = MatMul(x, q)", "y"),  # the file would grow
        ("t = Transpose(x) u = Shape(t) w = Concat<axis=1>(x, x) y = Identity(w)", "y"),
        ("w = Concat<axis=1>(q, k, v)", "w"),
    ],
)
def test_what_is_read_elsewhere_or_computed_stays(body: str, output: str) -> None:
    model = model_of(body, output)
    join_weights(model.graph)
    assert "Concat" in operators(model) and {"q", "k", "v"} <= set(model.graph.initializers)

"""Attention in one is attention in parts, and stays where it says more than that."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from dynorm_onnx.graph.replace.separate_attention import separate_attention
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import make_session
from tests.tolerances import relative_error

RNG = np.random.default_rng(0)
FEEDS = {
    "x": RNG.normal(size=(2, 3, 8)).astype(np.float32),
    "mask": np.where(RNG.random((2, 1, 3, 3)) < 0.3, np.float32(-9), np.float32(0)),
}


def model_of(
    attributes: str = "num_heads = 2", inputs: str = "x, w, b", outputs: str = "y", weight: int = 24
) -> ir.Model:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
        g (float[b, s, 8] x, float[b, 1, s, s] mask) => (float y) {{
            {outputs} = com.microsoft.Attention<{attributes}>({inputs}) }}"""
    )
    arrays = {"w": RNG.normal(size=(8, weight)), "b": RNG.normal(size=weight)}
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([3, 2], np.int32), "lengths"))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return ir.from_proto(proto)


@pytest.mark.parametrize(
    "case",
    [
        {}, {"inputs": "x, w"}, {"inputs": "x, w, b, , , mask"}, {"attributes": "num_heads = 4, scale = 0.3"},
        {"attributes": "num_heads = 2, unidirectional = 1"},
        {"attributes": "num_heads = 2, qkv_hidden_sizes = [8, 8, 4]", "weight": 20},
    ],
    ids=str,
)  # fmt: skip
def test_in_parts_it_gives_the_same(case: dict) -> None:
    model = model_of(**case)
    before = run(make_session(model), FEEDS)["y"]
    separate_attention(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "MatMul", "MatMul", "MultiHeadAttention"]
    assert "w" not in model.graph.initializers
    assert relative_error(run(make_session(model), FEEDS)["y"], before) < 1e-6


@pytest.mark.parametrize(
    "case",
    [
        {"inputs": "x, w, b, lengths"}, {"attributes": "num_heads = 2, do_rotary = 1"}, {"outputs": "y, present"},
        {"inputs": "x, x, b"},
    ],
    ids=str,
)  # fmt: skip
def test_what_says_more_stays(case: dict) -> None:
    model = model_of(**case)
    separate_attention(model)
    assert [node.op_type for node in model.graph] == ["Attention"]

"""Gemm reads the rows of what attention gives; what reads no attention stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from dynorm_onnx.graph.replace.flat_rows import flatten_rows
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import make_session

X = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)


def model_of(body: str) -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> g (float[b, s, 8] x) => (float y) {{ {body} }}'
    )
    weight = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return ir.from_proto(proto)


ATTENTION = "a = com.microsoft.MultiHeadAttention<num_heads=2>(x, x, x)"


def test_gemm_behind_attention_multiplies_its_rows() -> None:
    product = run(make_session(model_of(f"{ATTENTION} y = MatMul(a, w)")), {"x": X})["y"]
    model = model_of(f"{ATTENTION} y = Gemm(a, w)")
    flatten_rows(model.graph)
    assert [node.op_type for node in model.graph] == ["MultiHeadAttention", "Flatten", "Gemm"]
    np.testing.assert_allclose(run(make_session(model), {"x": X})["y"], product.reshape(6, 4), rtol=1e-5, atol=1e-6)


def test_what_reads_no_attention_stays() -> None:
    model = model_of(
        f"{ATTENTION} r = Flatten<axis=2>(a) g = Gemm(r, w) h = Flatten<axis=2>(x) k = Gemm(h, w) y = Add(g, k)"
    )
    before = [node.op_type for node in model.graph]
    flatten_rows(model.graph)
    assert [node.op_type for node in model.graph] == before

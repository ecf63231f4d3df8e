"""Layers are called what people call them, as far as a file tells."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import parser

from dynorm_onnx.graph.linear.layer_label import layer_label

SCOPES = {"pkg.torch.onnx.name_scopes": "['', 'model.layers.3', 'model.layers.3.mlp.down_proj', 'linear']"}
NAMESPACE = {
    "namespace": ": M/layers.3.mlp: MLP/layers.3.mlp.up: torch.nn.modules.linear.Linear/linear: aten.linear.default"
}


def label(
    weight: str = "val_7", node: str = "node_linear", notes: dict[str, str] | None = None, norm: str = "n"
) -> str:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[2, 4] x) => (float[2, 4] y) <float[4] "{norm}" = {{1, 1, 1, 1}}, float[4, 4] "{weight}"> {{
      h = Mul(x, "{norm}")
      a = Relu(h)
      y = MatMul(a, "{weight}")
    }}"""
    model = ir.from_proto(parser.parse_model(text.replace(f'"{norm}"', "norm_").replace(f'"{weight}"', "weight_")))
    matmul = model.graph[-1]
    matmul.name = node
    matmul.metadata_props.update(notes or {})
    model.graph[0].inputs[1].name = norm  # type: ignore[union-attr]
    value = matmul.inputs[1]
    assert value is not None
    value.name = weight
    return layer_label(matmul, value)


@pytest.mark.parametrize(
    ("expected", "known"),
    [
        ("model.layers.3.mlp.down_proj", {"weight": "model.layers.3.mlp.down_proj.weight", "notes": NAMESPACE}),
        ("model/block_0/dense", {"weight": "model/block_0/dense/kernel/read:0"}),
        ("model.layers.3.mlp.down_proj", {"notes": SCOPES | NAMESPACE}),
        ("layers.3.mlp.up", {"notes": NAMESPACE}),
        ("model.layers.0.mlp", {"node": "/model/layers.0/mlp/MatMul"}),
        ("node_linear after layers.0.norm", {"norm": "layers.0.norm.weight"}),
        ("node_linear", {}),
        ("node_linear", {"weight": "onnx::MatMul_1582"}),
        ("lin", {"weight": "lin"}),
        ("val_7", {"node": ""}),
        ("node_linear", {"notes": {"pkg.torch.onnx.name_scopes": "not a list", "namespace": ""}}),
    ],
)
def test_by_what_there_is(expected: str, known: dict) -> None:
    assert label(**known) == expected


def test_not_after_the_head_that_shares_the_embedding() -> None:
    model = ir.from_proto(
        parser.parse_model(
            """<ir_version: 10, opset_import: ["" : 21]>
            g (int64[2] ids) => (float[2, 4] y) <float[9, 4] table = {0}, float[4, 4] val_7 = {0}> {
              h = Gather(table, ids)
              y = MatMul(h, val_7)
            }"""
        )
    )
    gather, matmul = model.graph
    gather.inputs[0].name = "model.lm_head.weight"  # type: ignore[union-attr]
    matmul.name = "node_linear"
    weight = matmul.inputs[1]
    assert weight is not None
    assert layer_label(matmul, weight) == "node_linear"

"""Which layers are re-fitted, and how those that are not are told of."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from dynorm_onnx.calibration.layers.layer_groups import NAMED, group_layers


def quantised(layers: int) -> ir.Model:
    """This many MatMulInteger one after another, without the scales of their operands, and one MatMul."""
    steps = [
        f"q{i}, s{i}, z{i} = DynamicQuantizeLinear(x{i}) n{i} = MatMulInteger(q{i}, w, z{i}) "
        f"x{i + 1} = Cast<to=1>(n{i})"
        for i in range(layers)
    ]
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[5, 6] x0) => (float y) '
        f"{{ {' '.join(steps)} y = MatMul(x{layers}, v) }}"
    )
    rng = np.random.default_rng(0)
    proto.graph.initializer.append(numpy_helper.from_array(rng.integers(-9, 9, (6, 6)).astype(np.int8), "w"))
    proto.graph.initializer.append(numpy_helper.from_array(rng.normal(size=(6, 6)).astype(np.float32), "v"))
    for place, node in enumerate(proto.graph.node):
        node.name = f"node{place}" if node.op_type != "MatMulInteger" else f"layer{node.output[0][1:]}"
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


@pytest.mark.parametrize("layers", [1, NAMED, NAMED + 3])
def test_layers_left_for_one_reason_are_one_note(layers: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    groups, notes = group_layers(quantised(layers).graph, ())
    assert groups == [] and len(notes) == 1
    assert "weights are quantised" in notes[0] and notes[0].startswith("layer0")
    assert ("are left" in notes[0]) is (layers > 1)
    assert ("and 3 more" in notes[0]) is (layers > NAMED)
    for place in range(layers):
        assert (f"layer{place}" in notes[0]) is (place < NAMED)
        assert f"layer{place} is left as it is" in caplog.text

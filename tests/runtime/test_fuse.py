"""What onnxscript makes of a model for ONNX Runtime: where it is done, and what its nodes are called."""

from __future__ import annotations

import onnx_ir as ir
import onnxscript.rewriter.ort_fusions as ort_fusions
import pytest

from dynorm_onnx.graph.files import model_io
from dynorm_onnx.runtime.fuse import fuse_for_ort, fused_or_not
from tests.graph.fold.models import pre_norm
from tests.shipped import MODEL


@pytest.fixture(scope="module")
def shipped() -> ir.Model:
    return model_io.load(MODEL)


def test_fused_nodes_are_called_as_what_they_replace(shipped: ir.Model) -> None:
    before = {value.name: node.name for node in shipped.graph for value in node.outputs}
    fused = fuse_for_ort(shipped)
    norms = [node for node in fused.graph if "LayerNormalization" in node.op_type]
    assert norms and all(node.name == before[node.outputs[0].name] for node in norms)
    names = [node.name for node in fused.graph]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("optimize", "fused"), [("none", False), ("auto", True), ("ort", True)])
def test_attention_is_fused_unless_that_is_not_wanted(shipped: ir.Model, optimize: str, fused: bool) -> None:
    operators = {node.op_type for node in fused_or_not(shipped, optimize).graph}
    assert ("MultiHeadAttention" in operators) is fused


def test_a_model_without_attention_is_fused_on_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    fuse = ort_fusions.optimize_for_ort
    monkeypatch.setattr(ort_fusions, "optimize_for_ort", lambda model: asked.append(model) or fuse(model))
    model = ir.from_proto(pre_norm(blocks=1))
    assert fused_or_not(model, "auto") is model and not asked
    assert fused_or_not(model, "ort") is not model and len(asked) == 1

"""The end of a graph that makes logits, cut off: found where it is one, and the same numbers from it in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from dynorm_onnx.graph.edit.pieces import part_of_model
from dynorm_onnx.graph.files import model_io
from tests.tolerances import relative_error

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")

from dynorm_onnx.pytorch.distil import chunked as chunked_module  # noqa: E402
from dynorm_onnx.pytorch.distil.chunked import ChunkedKL  # noqa: E402
from dynorm_onnx.pytorch.distil.losses import kl, total  # noqa: E402
from dynorm_onnx.pytorch.graph import GraphModule  # noqa: E402

BYTE_LLAMA = Path(__file__).parents[3] / "models" / "byte_llama" / "byte_llama.onnx"
TIED = """
<ir_version: 8, opset_import: ["": 18]>
tied (int64[b, n] ids) => (float[b, n, 6] logits, float[b, n, 4] wide) {
    embedded = Gather(table, ids)
    wide = Tanh(embedded)
    turned = Transpose<perm = [1, 0]>(table)
    product = MatMul(wide, turned)
    small = Div(product, cap)
    bounded = Tanh(small)
    logits = Mul(bounded, cap)
}
"""
NONE = """
<ir_version: 8, opset_import: ["": 18]>
g (float[b, n, 4] x) => (float[b, n, 6] logits) {
    product = MatMul(x, table)
    logits = Softmax(product)
}
"""
IDS = torch.tensor([[1, 5, 2, 0, 3], [4, 4, 1, 2, 5]])


def tied(seed: int = 0) -> ir.Model:
    rng = np.random.default_rng(seed)
    proto = onnx.parser.parse_model(TIED)
    arrays = {"table": 2 * rng.standard_normal((6, 4)), "cap": np.array(3.0)}
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return ir.from_proto(proto)


@pytest.mark.parametrize("name", ["tied", "shipped"])
def test_the_tail_makes_the_logits_from_rows_of_what_is_given_out_instead(name: str) -> None:
    model = tied() if name == "tied" else model_io.load(BYTE_LLAMA)
    key = "ids" if name == "tied" else "input_ids"
    whole, cut = GraphModule(model), GraphModule(model, tail="logits")
    assert cut.tail is not None and set(cut.learned()) == set(whole.learned())
    with torch.no_grad():
        expected, outputs = whole(**{key: IDS}), cut(**{key: IDS})
        assert "logits" not in outputs and (name != "tied" or "wide" in outputs)
        rows = outputs[cut.tail.source].flatten(0, -2)
        parts = [cut.run_tail(rows[part], cut.tail_values()) for part in (slice(0, 3), slice(3, None))]
    assert relative_error(torch.cat(parts).numpy(), expected["logits"].flatten(0, -2).numpy()) < 1e-6
    assert len(cut.program.steps) + len(cut.tail.program.steps) <= len(whole.program.steps) + 1


def test_what_depends_on_other_rows_or_words_is_no_tail() -> None:
    proto = onnx.parser.parse_model(NONE)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 6), np.float32), "table"))
    module = GraphModule(ir.from_proto(proto), tail="logits")
    assert module.tail is None and module.program.outputs == ("logits",)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_a_kl_in_parts_is_the_kl_and_has_its_gradients(
    masked: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_module, "chunk_rows", lambda vocabulary: rows)
    mask = torch.tensor([[1, 1, 0, 0, 1], [1, 1, 1, 1, 1]]) if masked else None
    whole, cut = GraphModule(tied()), GraphModule(tied(), tail="logits")
    original = tied(seed=1)
    teacher, parts = GraphModule(original), GraphModule(original, tail="logits")
    assert parts.tail is not None
    end = GraphModule(part_of_model(original, [parts.tail.source], ["logits"]), tail="logits")
    with torch.no_grad():
        target, rows_of_target = teacher(ids=IDS), parts(ids=IDS)
    losses = []
    for module in (whole, cut):
        outputs = module(ids=IDS)
        if module is whole:
            term = kl(outputs["logits"], target["logits"], mask)
        else:
            term = ChunkedKL(cut, end).term(outputs, rows_of_target, mask)
        loss = 3 * total([term])
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[0] > 0.1
    for name, parameter in whole.learned().items():
        assert relative_error(cut.learned()[name].grad.numpy(), parameter.grad.numpy()) < 1e-5

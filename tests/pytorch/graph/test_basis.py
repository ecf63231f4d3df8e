"""A learned basis: what it leaves as it was, and what it changes together."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from dynorm_onnx.graph.replace.rewrite import set_initializers
from dynorm_onnx.graph.streams.basis import find_bases
from tests.builders.convert import lowered
from tests.shipped import MODEL
from tests.tolerances import TOLERANCE, relative_error

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")

from dynorm_onnx.pytorch.graph import GraphModule  # noqa: E402
from dynorm_onnx.pytorch.graph.basis import GraphBasis  # noqa: E402

IDS = np.random.default_rng(0).integers(0, 256, (2, 19))


def test_weights_are_mixed_along_their_axis_and_mixed_back_where_they_are_read() -> None:
    rng = np.random.default_rng(1)
    basis = GraphBasis(4, {"row": 1, "column": 0, "bias": 0}, {"read": 0})
    with torch.no_grad():
        basis.basis.change.copy_(torch.from_numpy(0.3 * rng.standard_normal((4, 4))))
    weights = {name: torch.from_numpy(rng.standard_normal(shape)).float() for name, shape in
               {"row": (7, 4), "column": (4, 3), "bias": (4,), "read": (4, 5), "other": (4, 4)}.items()}  # fmt: skip
    matrix = np.eye(4) + basis.basis.change.detach().double().numpy()
    changed = {name: tensor.detach().double().numpy() for name, tensor in basis.changed(weights).items()}
    given = {name: tensor.double().numpy() for name, tensor in weights.items()}
    wanted = {
        "row": given["row"] @ matrix,
        "column": matrix.T @ given["column"],
        "bias": given["bias"] @ matrix,
        "read": np.linalg.solve(matrix, given["read"]),
    }
    assert set(changed) == set(wanted)
    for name, array in wanted.items():
        assert relative_error(changed[name], array) < TOLERANCE["float32"]


def test_a_rotation_of_the_stream_is_nothing_to_rms_norms_of_weight_one() -> None:
    """Of the shipped model: were a writer or a reader missing, or an axis wrong, the outputs would show it."""
    prepared, norms = lowered(onnx.load(MODEL))
    set_initializers(prepared, {str(norm.node.inputs[1].name): np.ones_like(norm.weight) for norm in norms})
    (basis,) = find_bases(prepared.graph, norms)
    module = GraphModule(prepared)
    feeds = {"input_ids": torch.from_numpy(IDS)}
    with torch.no_grad():
        before = module(**feeds)["logits"].numpy()
        module.learn_basis(basis.channels, basis.writers, basis.readers)
        (change,) = module.bases().values()
        same = module(**feeds)["logits"].numpy()
        rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((basis.channels, basis.channels)))[0]
        change.copy_(torch.from_numpy(rotation - np.eye(basis.channels)))
        after = module(**feeds)["logits"].numpy()
        written = module.initializers()
    assert relative_error(same, before) < 1e-6
    assert relative_error(after, before) < 1e-4
    moved = {*basis.writers, *basis.readers}
    own = {name: value.const_value.numpy() for name, value in prepared.graph.initializers.items() if name in moved}
    assert all(relative_error(written[name], own[name]) > 0.1 for name in moved)


def test_a_table_of_positions_is_moved_although_it_is_not_learned() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 23]>
        model (int64[batch, 3] ids) => (float[batch, 3, 5] logits) {
            rows = Gather(table, ids)
            places = Gather(positions, places_of_three)
            stream = Add(rows, places)
            y = RMSNormalization(stream, gain)
            logits = MatMul(y, head)
        }""")
    rng = np.random.default_rng(3)
    shapes = {"table": (7, 4), "positions": (9, 4), "head": (4, 5), "gain": (4,)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["places_of_three"] = np.arange(3)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    prepared, norms = lowered(onnx.shape_inference.infer_shapes(proto))
    (basis,) = find_bases(prepared.graph, norms)
    assert basis.writers == {"table": 1, "positions": 1}
    module = GraphModule(prepared)
    module.learn_basis(basis.channels, basis.writers, basis.readers)
    with torch.no_grad():
        next(iter(module.bases().values())).fill_(0.1)
    assert "positions" not in module.learned()
    matrix = np.eye(4) + 0.1
    assert relative_error(module.initializers()["positions"], arrays["positions"] @ matrix) < TOLERANCE["float32"]

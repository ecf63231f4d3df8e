"""The variants of a conversion: which are there, and that a wrong fusion is not taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript.rewriter.ort_fusions as ort_fusions
from onnx import parser

from dynorm_onnx.functions import NormParameters
from dynorm_onnx.graph.files.prepare import prepare
from dynorm_onnx.graph.lower import lower
from dynorm_onnx.graph.replace.inline import inlined
from dynorm_onnx.graph.replace.rewrite import replace
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.runtime import variants
from dynorm_onnx.runtime.placement import placement
from dynorm_onnx.runtime.session import has_kernels, runnable
from dynorm_onnx.runtime.timing import Timing
from dynorm_onnx.runtime.variants import CONVERTED, FUSED, KERNELS, ORIGINAL, make_variants, time_model

FEEDS = {"x": np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)}


def rms_norm() -> onnx.ModelProto:
    """RMSNorm as torch.onnx writes it, by Reciprocal, which ONNX Runtime alone does not fuse."""
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        rms (float[B, T, 16] x) => (float[B, T, 16] y)
        <float eps = {1e-6}, float two = {2}, int64[1] axes = {-1}> {
          square = Pow(x, two)
          mean = ReduceMean<keepdims = 1, noop_with_empty_axes = 0>(square, axes)
          shifted = Add(mean, eps)
          root = Sqrt(shifted)
          inverse = Reciprocal(root)
          normed = Mul(x, inverse)
          y = Mul(weight, normed)
        }"""
    )
    weight = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    return model


def is_fused(session) -> bool:
    """Whether a single node is left; taken for granted where ONNX Runtime cannot tell."""
    nodes = placement(session)
    return nodes is None or [node.op_type for node in nodes] == ["SimplifiedLayerNormalization"]


def test_the_variants_of_a_file_and_of_a_model_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(rms_norm(), path)
    given = ir.load(path)
    for original in (path, rms_norm(), rms_norm().SerializeToString(), given):
        sessions = make_variants(original, path, FEEDS)
        assert set(sessions) == {ORIGINAL, FUSED, CONVERTED}
        assert is_fused(sessions[FUSED])
    assert next(node.op_type for node in given.graph) == "Pow", "the original is not changed"


def test_the_library_is_timed_where_a_node_is_one_of_its_operators(tmp_path: Path) -> None:
    model = ir.from_proto(rms_norm())
    (norm,) = lower(prepared := prepare(model), find_sites(prepared, load=runnable).sites)
    scalars = {"beta": np.ones(1)}
    replace(prepared, norm, "dyisru", NormParameters(norm.weight, np.zeros(16), scalars))
    path = tmp_path / "m.onnx"
    ir.save(prepared, path)
    for converted in (path, prepared, ir.to_proto(prepared), path.read_bytes()):
        assert (KERNELS in make_variants(rms_norm(), converted, FEEDS)) == has_kernels("cpu")
    assert KERNELS not in make_variants(rms_norm(), inlined(prepared), FEEDS)


def test_a_fusion_that_changes_the_outputs_is_left(monkeypatch) -> None:
    def wrong(model: ir.Model) -> tuple[ir.Model, dict[str, int]]:
        weight = model.graph.initializers["weight"]
        weight.const_value = ir.tensor(2 * weight.const_value.numpy())
        return model, {}

    monkeypatch.setattr(ort_fusions, "optimize_for_ort", wrong)
    assert FUSED not in make_variants(rms_norm(), rms_norm(), FEEDS)


def test_a_fusion_that_raises_is_left(monkeypatch) -> None:
    def broken(model: ir.Model) -> tuple[ir.Model, dict[str, int]]:
        raise AssertionError("pattern")

    monkeypatch.setattr(ort_fusions, "optimize_for_ort", broken)
    assert FUSED not in make_variants(rms_norm(), rms_norm(), FEEDS)


def test_original_fused_is_the_better_of_both(monkeypatch) -> None:
    def timed(sessions, feeds, **_) -> tuple[Timing, ...]:
        return tuple(Timing(name, "cpu", sessions[name], 0, 0, 9) for name in sessions)

    monkeypatch.setattr(variants, "time_variants", timed)
    for times, best in (({ORIGINAL: 3, FUSED: 2}, 2), ({ORIGINAL: 2, FUSED: 3}, 2), ({ORIGINAL: 4}, 4)):
        rows = time_model({**times, CONVERTED: 1}, FEEDS)
        assert [row.variant for row in rows] == [ORIGINAL, FUSED, CONVERTED]
        assert rows[1].median_ms == best

"""Whole conversions of the shipped model: what comes out runs, is what the report says, and is good."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxscript.rewriter import ort_fusions

from dynorm_onnx import convert_model, session
from dynorm_onnx.errors import BoundError, ModelError, NoSiteError, UsageError
from dynorm_onnx.functions import FUNCTIONS, REGISTRY
from dynorm_onnx.runtime.session import make_session
from tests.shipped import MODEL, NORMS, TEXT
from tests.tolerances import relative_error

QUICK = {"data": TEXT, "samples": 12, "max_length": 64, "time": False, "rotate": False, "optimize": "none"}


def tokens(seed: int = 0) -> dict[str, np.ndarray]:
    return {"input_ids": np.random.default_rng(seed).integers(0, 256, (2, 40))}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
def test_every_norm_becomes_one_node(function, tmp_path: Path) -> None:
    output = tmp_path / "converted.onnx"
    report = convert_model(MODEL, to=function.name, output=output, method="fit", **QUICK)
    model = onnx.load(output)
    onnx.checker.check_model(model, full_check=True)
    counts = Counter(node.op_type for node in model.graph.node if node.domain == "dynorm")
    # The first norm reads the embedding, all others a sum.
    assert counts == {function.op_type: 1, function.skip_op_type: NORMS - 1}
    assert not [node for node in model.graph.node if node.op_type in ("ReduceMean", "RMSNormalization")]
    assert {f.name for f in model.functions} == {function.op_type, function.skip_op_type}
    assert [site.status for site in report.sites] == ["converted"] * NORMS
    logits = session(output).run(None, tokens())[0]
    assert np.all(np.isfinite(logits))


def test_rmsnorm_changes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "exact.onnx"
    report = convert_model(MODEL, to="rmsnorm", output=output, **QUICK)
    before, after = (make_session(path).run(None, tokens())[0] for path in (MODEL, output))
    assert relative_error(after, before) < 1e-5
    assert report.validation is not None and report.validation.quality is not None
    assert report.validation.quality.kl_mean < 1e-9


def test_fused_for_onnx_runtime_and_converted(tmp_path: Path) -> None:
    output = tmp_path / "fused.onnx"
    report = convert_model(MODEL, to="rmsnorm", output=output, **{**QUICK, "optimize": "ort"})
    operators = {node.op_type for node in onnx.load(output).graph.node}
    assert "MultiHeadAttention" in operators and "Softmax" not in operators
    assert report.validation is not None and report.validation.quality is not None
    assert report.validation.quality.kl_mean < 1e-9
    assert report.as_dict()["optimize"] == "ort"


def test_fusions_that_change_the_outputs_are_refused(tmp_path: Path, monkeypatch) -> None:
    def wrong(model):
        weight = next(v for v in model.graph.initializers.values() if v.const_value.dtype.is_floating_point())
        weight.const_value = ir.tensor(2 * weight.const_value.numpy())
        return model, {}

    monkeypatch.setattr(ort_fusions, "optimize_for_ort", wrong)
    with pytest.raises(ModelError, match=r"--optimize ort: .* change its outputs; leave it out"):
        convert_model(MODEL, output=tmp_path / "wrong.onnx", **{**QUICK, "optimize": "ort"})
    assert not list(tmp_path.iterdir())


def test_what_is_reported_is_what_is_in_the_file(tmp_path: Path) -> None:
    output = tmp_path / "converted.onnx"
    report = convert_model(MODEL, output=output, method="fit", **QUICK)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(output).graph.initializer}
    for site in report.sites:
        assert site.parameters is not None
        beta = arrays[f"{site.name}.dyisru.beta"]
        np.testing.assert_allclose(beta, site.parameters.scalars["beta"], rtol=1e-6)
        assert np.all(beta > 0) and beta.dtype == np.float32


def test_kept_norms_stay_exact(tmp_path: Path) -> None:
    output = tmp_path / "converted.onnx"
    report = convert_model(MODEL, output=output, keep=["*layers.0*", "model.norm"], **QUICK)
    kept = [site for site in report.sites if site.status == "kept"]
    assert [site.name for site in kept] == [
        "model.layers.0.input_layernorm",
        "model.layers.0.post_attention_layernorm",
        "model.norm",
    ]
    assert kept[-1].reason == "--keep model.norm"
    replaced = [node for node in onnx.load(output).graph.node if node.domain == "dynorm"]
    assert len(replaced) == NORMS - 3


def test_reconstruction_is_better_than_the_fit_alone(tmp_path: Path) -> None:
    knobs = {"data": TEXT, "samples": 32, "max_length": 96, "time": False, "rotate": False}
    quality = {}
    for method in ("fit", "reconstruct"):
        report = convert_model(MODEL, output=tmp_path / f"{method}.onnx", method=method, **knobs)
        assert report.validation is not None and report.validation.quality is not None
        quality[method] = report.validation.quality
        assert method == "reconstruct" or not report.changed_initializers
    assert quality["reconstruct"].kl_mean < 0.6 * quality["fit"].kl_mean
    assert quality["reconstruct"].top1_agreement > quality["fit"].top1_agreement


def test_calibration_text_is_measured_beside_the_held_out_text(tmp_path: Path) -> None:
    report = convert_model(MODEL, output=tmp_path / "out.onnx", **QUICK)
    assert report.validation is not None and report.validation.quality is not None
    beside = report.validation.on_calibration
    assert beside is not None and beside.quality is not None
    assert 0 < beside.quality.tokens <= report.validation.quality.tokens
    # Re-fitted on 768 tokens, the model has learned them by heart.
    assert beside.quality.kl_mean < report.validation.quality.kl_mean / 1.3
    assert any("calibration data" in warning for warning in report.warnings)
    exact = convert_model(MODEL, to="rmsnorm", output=tmp_path / "exact.onnx", **QUICK)
    assert exact.validation is not None and exact.validation.on_calibration is None


def test_a_dry_run_lists_and_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "converted.onnx"
    report = convert_model(MODEL, output=output, dry_run=True)
    assert [site.status for site in report.sites] == ["found"] * NORMS
    assert report.output is None and not output.exists()


def test_a_bound_that_nothing_meets_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "converted.onnx"
    with pytest.raises(BoundError, match="1e-12"):
        convert_model(MODEL, output=output, max_kl=1e-12, method="fit", **QUICK)
    assert not list(tmp_path.iterdir())


def test_a_model_without_norms_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }'
    )
    onnx.save(model, path)
    with pytest.raises(NoSiteError, match="no norm"):
        convert_model(path)


def test_unknown_arguments_and_targets_are_named() -> None:
    with pytest.raises(UsageError, match="'samplse'"):
        convert_model(MODEL, samplse=3)
    with pytest.raises(UsageError, match=f"'relu' is not one of {', '.join(REGISTRY)}"):
        convert_model(MODEL, to="relu")


def test_a_bound_keeps_the_norms_that_cost_most(tmp_path: Path) -> None:
    bound = 0.1
    report = convert_model(MODEL, output=tmp_path / "out.onnx", max_kl=bound, method="fit", **QUICK)
    kept = report.with_status("kept")
    assert 0 < len(kept) < NORMS
    assert all("kept for the bound" in str(site.reason) for site in kept)
    assert report.validation is not None and report.validation.quality is not None
    assert report.validation.quality.kl_mean <= bound

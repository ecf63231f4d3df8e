"""Sessions: every kind of model loads, and every way to fail is one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dynorm_onnx.errors import DataError, ModelError, ProviderError, UsageError
from dynorm_onnx.runtime import session as session_module
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.library import onnxruntime
from dynorm_onnx.runtime.placement import check_placement, placement
from dynorm_onnx.runtime.session import make_session, session
from tests.builders.execute import run_model
from tests.runtime.models import bfloat16_scale, linear, local_function

X = np.arange(8, dtype=np.float32).reshape(2, 4)
WEIGHT = np.random.default_rng(0).standard_normal((4, 96)).astype(np.float32)


def outputs(made, x: np.ndarray = X) -> np.ndarray:
    return run(made, {"x": x})["y"]


def test_a_model_loads_from_file_bytes_proto_and_ir(tmp_path: Path) -> None:
    proto = local_function()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    for model in (path, str(path), proto.SerializeToString(), proto, ir.from_proto(proto)):
        np.testing.assert_array_equal(outputs(make_session(model)), 2 * X)
    np.testing.assert_array_equal(outputs(session(path)), 2 * X)


def test_external_weights_are_read_where_they_are(tmp_path: Path) -> None:
    onnx.save(linear(WEIGHT), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = ir.load(tmp_path / "m.onnx")
    assert isinstance(model.graph.initializers["weight"].const_value, ir.ExternalTensor)
    np.testing.assert_allclose(outputs(make_session(model)), X @ WEIGHT, rtol=1e-6)
    assert isinstance(model.graph.initializers["weight"].const_value, ir.ExternalTensor)


def test_a_model_too_large_for_a_message_goes_through_a_folder(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session_module, "_LARGEST_MESSAGE", 100)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = ir.from_proto(linear(WEIGHT))
    for given in (model, linear(WEIGHT)):
        made = make_session(given)
        np.testing.assert_allclose(outputs(made), X @ WEIGHT, rtol=1e-6)
        assert list(tmp_path.iterdir())
        del made
        assert not list(tmp_path.iterdir()), "the temporary folder goes with its session"
    assert model.graph.initializers["weight"].const_value.nbytes == WEIGHT.nbytes


def test_run_model_returns_the_outputs_in_order() -> None:
    x = X.astype(ml_dtypes.bfloat16)
    y, z = run_model(bfloat16_scale(), {"x": x, "s": np.array(0.5, ml_dtypes.bfloat16)})
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y.astype(np.float32), X / 2)
    np.testing.assert_array_equal(z, X / 2)


@pytest.mark.parametrize("optimization", ["all", "basic", "none"])
def test_every_level_gives_the_same(optimization) -> None:
    np.testing.assert_array_equal(outputs(make_session(local_function(), optimization=optimization, threads=1)), 2 * X)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_text("no model")
    with pytest.raises(ModelError, match=r"cannot load .*bad\.onnx"):
        make_session(bad)
    with pytest.raises(ModelError, match="no such file"):
        make_session(tmp_path / "none.onnx")


def test_feeds_that_do_not_fit() -> None:
    made = make_session(local_function(), log_severity=4)
    with pytest.raises(DataError, match="x"):
        run(made, {"x": X.astype(np.float64)})
    with pytest.raises(DataError, match="x"):
        run(made, {})


@pytest.mark.parametrize("knob", [{"provider": "tpu"}, {"optimization": "some"}, {"threads": 0}])
def test_knobs_out_of_range(knob) -> None:
    with pytest.raises(UsageError, match=str(next(iter(knob)))):
        make_session(local_function(), **knob)


def test_cuda_that_is_not_there_is_an_error() -> None:
    if "CUDAExecutionProvider" in onnxruntime().get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(ProviderError, match="cuda was asked for"):
        make_session(local_function(), provider="cuda")


def test_kernels_that_are_not_there_are_an_error() -> None:
    if session_module.has_kernels("cpu"):
        pytest.skip("the custom-op library is installed")
    with pytest.raises(UsageError, match="custom-op library"):
        make_session(local_function(), kernels=True)


def test_threads_spin_where_told_to() -> None:
    key = "session.intra_op.allow_spinning"
    assert make_session(linear(WEIGHT)).get_session_options().get_session_config_entry(key) == "0"
    with pytest.raises(RuntimeError, match="does not have configuration"):
        make_session(linear(WEIGHT), spinning=True).get_session_options().get_session_config_entry(key)


def test_placement_names_every_node() -> None:
    nodes = placement(make_session(linear(WEIGHT)))
    if nodes is None:
        pytest.skip("this ONNX Runtime does not tell")
    assert [(node.op_type, node.provider) for node in nodes] == [("MatMul", "CPUExecutionProvider")]


def test_a_heavy_node_elsewhere_is_an_error() -> None:
    made = make_session(linear(WEIGHT))
    if placement(made) is None:
        pytest.skip("this ONNX Runtime does not tell")
    with pytest.raises(ProviderError, match=r"1 of 1 nodes .* MatMul"):
        check_placement(made, "CUDAExecutionProvider")


def test_without_onnxruntime_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    onnxruntime.cache_clear()
    with pytest.raises(UsageError, match=r"dynorm-onnx\[cpu\]"):
        make_session(local_function())
    onnxruntime.cache_clear()

"""Rotations within whole conversions: done where they help, exact, reported, and left out on request."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from dynorm_onnx import convert_model
from dynorm_onnx.errors import ModelError
from dynorm_onnx.report import Report, print_report
from tests.calibration.rotation import planted
from tests.graph.fold.models import post_norm, pre_norm

QUICK = {"time": False, "data": planted.samples()}


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("planted"), planted.model())


def error(report: Report) -> float:
    assert report.validation is not None
    return report.validation.largest_error


def text_of(report: Report) -> str:
    text = io.StringIO()
    print_report(report, Console(file=text, width=250))
    return text.getvalue()


@pytest.mark.parametrize("method", ["fit", "reconstruct"])
def test_a_stream_in_a_bad_basis_is_turned(model: Path, tmp_path: Path, method: str) -> None:
    report = convert_model(model, output=tmp_path / "turned.onnx", method=method, **QUICK)
    plain = convert_model(model, output=tmp_path / "plain.onnx", method=method, rotate=False, **QUICK)
    (done,) = report.rotations.done
    assert done.sites == ("first", "last") and done.channels == planted.CHANNELS and done.axes == ()
    assert done.error_after < 0.9 * done.error_before
    assert report.rotations.relative_error is not None and report.rotations.relative_error < 1e-5
    assert {"table", "back", "layer", "head"} <= set(report.changed_initializers)
    assert method == "reconstruct" or report.changed_initializers == report.rotations.changed_initializers
    assert error(report) < 0.95 * error(plain)
    assert not plain.rotations.done and not plain.rotations.left
    told = report.as_dict()["rotations"]
    assert told["done"][0]["error_after"] == done.error_after and told["left"] == []
    assert "rotated: the stream of 12 channels that 2 norms read; behind them the functions err by" in text_of(report)
    assert "rotated" not in text_of(plain)


def test_weights_that_lie_in_a_file(model: Path, tmp_path: Path) -> None:
    external = tmp_path / "external.onnx"
    onnx.save(onnx.load(model), external, save_as_external_data=True, size_threshold=0, location="weights")
    written = [tmp_path / "inside.onnx", tmp_path / "outside.onnx"]
    for source, output in zip((model, external), written, strict=True):
        report = convert_model(source, output=output, method="fit", validate=False, **QUICK)
        assert report.rotations.done
    one, other = (onnx.load(path) for path in written)
    arrays = [{v.name: onnx.numpy_helper.to_array(v) for v in proto.graph.initializer} for proto in (one, other)]
    assert arrays[0].keys() == arrays[1].keys()
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])


def test_the_same_seed_writes_the_same_file(model: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.onnx" for name in ("first", "again", "other")]
    for file, seed in zip(files, (3, 3, 4), strict=True):
        convert_model(model, output=file, method="fit", seed=seed, validate=False, **QUICK)
    first, again, other = (file.read_bytes() for file in files)
    assert first == again != other


def test_channels_of_sinks_stay_axes(tmp_path: Path) -> None:
    path = saved(tmp_path, planted.model(sinks=True))
    data = planted.samples(sinks=True)
    report = convert_model(path, output=tmp_path / "out.onnx", method="fit", coupled=0, time=False, data=data)
    massive = planted.CHANNELS - 1
    (done,) = report.rotations.done
    assert massive in done.axes
    before, after = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}["table"]
        for file in (path, tmp_path / "out.onnx")
    )
    assert np.array_equal(before[:, massive], after[:, massive])
    free = [channel for channel in range(planted.CHANNELS) if channel not in done.axes]
    assert not np.array_equal(before[:, free], after[:, free])
    assert "channels left as axes" in text_of(report)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sinks", [False, True])
def test_a_stream_is_turned_so_that_few_channels_tell_lengths(tmp_path: Path, sinks: bool, tied: bool) -> None:
    path = saved(tmp_path, planted.model(sinks=sinks, words=planted.telling, tied=tied))
    known = {"method": "fit", "coupled": planted.TELLING + sinks, "time": False, "data": planted.samples(sinks=sinks)}
    report = convert_model(path, output=tmp_path / "out.onnx", **known)
    plain = convert_model(path, output=tmp_path / "plain.onnx", rotate=False, **known)
    (found,) = report.rotations.lengths
    assert found.sites == ("first", "last") and found.directions == planted.TELLING + sinks
    assert found.error_after < 0.3 * found.error_before
    assert report.rotations.relative_error is not None and report.rotations.relative_error < 1e-5
    assert error(report) < 0.6 * error(plain)
    before, after = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}["table"]
        for file in (path, tmp_path / "out.onnx")
    )
    if sinks:  # its channel is the first direction, as it was
        assert np.array_equal(before[:, planted.CHANNELS - 1], after[:, 0])
        assert not report.rotations.done
    told = report.as_dict()["rotations"]["lengths"][0]
    assert told["error_after"] == found.error_after
    assert f"{found.directions} then tell a token's squared length to" in text_of(report)


def test_a_training_begins_with_as_few_directions_as_it_may_keep(tmp_path: Path) -> None:
    """Not with 32 channels of which all but these fade, as where a stream cannot be turned."""
    path = saved(tmp_path, planted.model(words=planted.telling, sinks=True))
    known = {"method": "distil", "steps": 2, "coupled": 3, "time": False, "data": planted.samples(sinks=True)}
    report = convert_model(path, output=tmp_path / "out.onnx", **known)
    (found,) = report.rotations.lengths
    assert found.directions == 3 and not report.rotations.done
    for site in report.as_dict()["sites"]:
        assert set(site["coupled"]["channels"]) <= {0, 1, 2}


def test_a_norm_that_a_bound_keeps_stays_a_norm_of_the_turned_stream(model: Path, tmp_path: Path) -> None:
    every = convert_model(model, output=tmp_path / "all.onnx", method="fit", **QUICK)
    bound = 0.9 * error(every)
    report = convert_model(model, output=tmp_path / "out.onnx", method="fit", max_error=bound, **QUICK)
    assert report.rotations.done and len(report.with_status("kept")) == 1
    assert error(report) <= bound


def test_layer_norms_are_turned_without_their_mean(tmp_path: Path) -> None:
    path = saved(tmp_path, pre_norm(blocks=2, gemm=True))
    report = convert_model(path, output=tmp_path / "out.onnx", method="fit", samples=8, data="random", time=False)
    told = report.rotations
    assert told.done or "the functions would err by" in told.left[0].reason
    if told.done:
        assert told.relative_error is not None and told.relative_error < 1e-5


def test_no_token_is_gathered_for_directions_of_layer_norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynorm_onnx.conversion.rotation.lengths.length_tokens_of", None)
    path = saved(tmp_path, pre_norm(blocks=2, gemm=True))
    known = {"method": "fit", "coupled": 2, "samples": 8, "data": "random", "time": False}
    report = convert_model(path, output=tmp_path / "out.onnx", **known)
    assert "directions of lengths are sought for RMSNorms only" in {left.reason for left in report.rotations.left}


def test_a_stream_of_post_norms_is_left_with_its_reason(tmp_path: Path) -> None:
    path = saved(tmp_path, post_norm())
    report = convert_model(path, output=tmp_path / "out.onnx", method="fit", samples=8, data="random", time=False)
    assert not report.rotations.done
    assert {site for stream in report.rotations.left for site in stream.sites} == {"embed", "norm0", "norm1"}
    assert all(stream.reason for stream in report.rotations.left)
    assert not report.rotations.changed_initializers


def test_what_would_change_the_outputs_is_not_kept(model: Path, tmp_path: Path, monkeypatch) -> None:
    from dynorm_onnx.graph.fold import parity

    monkeypatch.setitem(parity.TOLERANCE, "float32", 0.0)
    report = convert_model(model, output=tmp_path / "out.onnx", method="fit", **QUICK)
    (left,) = report.rotations.left
    assert "it would move the outputs by" in left.reason and "calibration data" in left.reason
    assert not report.changed_initializers


def test_a_reader_that_is_not_finite_is_named(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    last = [node.input[1] for node in proto.graph.node if node.op_type == "MatMul"][-1]
    weight = next(one for one in proto.graph.initializer if one.name == last)
    broken = onnx.numpy_helper.to_array(weight).copy()
    broken.flat[0] = np.inf
    weight.CopyFrom(onnx.numpy_helper.from_array(broken, last))
    with pytest.raises(ModelError, match=rf"the weight '{last}', which reads .*, holds numbers that are not finite"):
        convert_model(saved(tmp_path, proto), output=tmp_path / "out.onnx", method="fit", **QUICK)


def test_too_many_channels_are_named(model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dynorm_onnx.conversion.rotation.turned.LARGEST", planted.CHANNELS - 1)
    report = convert_model(model, output=tmp_path / "out.onnx", method="fit", **QUICK)
    assert report.rotations.left[0].reason == "it has 12 channels; a rotation is sought of up to 11"


@pytest.mark.parametrize("knobs", [{"to": "rmsnorm"}, {"rotate": False}])
def test_where_none_is_asked_for_none_is_sought(model: Path, tmp_path: Path, knobs: dict) -> None:
    report = convert_model(model, output=tmp_path / "out.onnx", **knobs, **QUICK)
    assert "rotate" not in report.seconds and not report.rotations.done and not report.rotations.left

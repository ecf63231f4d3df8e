"""Models whose weights stay in their file: read, run and written as if they had been read whole."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from dynorm_onnx.errors import ModelError
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.files.data_in_file import LARGE, read_without_data, write_with_data
from dynorm_onnx.runtime.session import make_session
from tests.shipped import MODEL


@pytest.fixture
def left_in_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_io, "LEFT_IN_FILE_ABOVE", 0)


def external(model: ir.Model) -> list[ir.ExternalTensor]:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]


def test_the_weights_are_those_of_the_file(left_in_file: None) -> None:
    model, whole = model_io.load(MODEL), onnx.load(MODEL)
    assert len(external(model)) > 20
    for tensor in whole.graph.initializer:
        value = model.graph.initializers[tensor.name].const_value
        assert value is not None
        np.testing.assert_array_equal(value.numpy(), numpy_helper.to_array(tensor))


def test_it_runs_as_the_file_does(left_in_file: None) -> None:
    feeds = {"input_ids": np.arange(40).reshape(2, 20)}
    (mine,) = make_session(model_io.load(MODEL)).run(None, feeds)
    np.testing.assert_allclose(mine, make_session(MODEL).run(None, feeds)[0], atol=1e-5)


def test_saved_again_it_is_one_file_with_everything_in_it(left_in_file: None, tmp_path: Path) -> None:
    model_io.save(model_io.load(MODEL), tmp_path / "again.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["again.onnx"]
    before, after = onnx.load(MODEL), onnx.load(tmp_path / "again.onnx")
    arrays = [{t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (before, after)]
    assert arrays[0].keys() == arrays[1].keys()
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])
    onnx.checker.check_model(after, full_check=True)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, ml_dtypes.int4, np.object_])
def test_what_is_written_is_what_onnx_ir_writes(dtype: type, tmp_path: Path) -> None:
    size = LARGE
    array = np.array(["x"] * size, np.object_) if dtype is np.object_ else np.ones(size, dtype)
    tensor = numpy_helper.from_array(array, "w")
    kind = tensor.data_type
    output = helper.make_tensor_value_info("w", kind, [size])
    graph = helper.make_graph([], "g", [], [output], [tensor, helper.make_tensor("s", TensorProto.INT64, [1], [3])])
    model = ir.from_proto(helper.make_model(graph, producer_name="p", opset_imports=[helper.make_opsetid("", 21)]))
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        write_with_data(model, file)
    written, whole = onnx.load(path), ir.to_proto(model)
    assert written == whole
    (again,) = (t for t in read_without_data(path).graph.initializer if t.name == "w")
    assert (again.data_location == TensorProto.EXTERNAL) is (kind in (TensorProto.FLOAT, TensorProto.BFLOAT16))


def test_a_second_link_to_the_file_changes_nothing(left_in_file: None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL.read_bytes())
    (tmp_path / "link.onnx").symlink_to(path)
    assert external(model_io.load(tmp_path / "link.onnx"))[0].numpy().size
    (tmp_path / "hard.onnx").hardlink_to(path)
    model_io.require_weights(model_io.load(tmp_path / "hard.onnx"))


@pytest.mark.parametrize(
    "content", [b"hello\n", b"\x00" * 50, MODEL.read_bytes()[:100_000]], ids=["text", "zeros", "cut"]
)
def test_what_is_no_model_is_an_error(content: bytes, left_in_file: None, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(DecodeError):
        read_without_data(path)
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        model_io.load(path)

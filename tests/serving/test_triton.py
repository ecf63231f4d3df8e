"""Triton model repositories: what config.pbtxt says, parsed by Triton's own schema, and the files beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

from dynorm_onnx import custom_ops
from dynorm_onnx.errors import ModelError, UsageError
from dynorm_onnx.runtime.session import make_session
from dynorm_onnx.serving.triton import write_triton_model
from tests.shipped import MODEL

SCHEMA = "tritonclient is not installed: pip install 'dynorm-onnx[serving]'"


def parsed(folder: Path) -> Any:
    """config.pbtxt as the message of model_config.proto."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=SCHEMA)
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


def saved(text: str, path: Path) -> Path:
    """A model in ONNX's text format, written to a file."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    onnx.save(model, path)
    return path


def test_config_of_a_converted_model(converted: Path, tmp_path: Path) -> None:
    folder = write_triton_model(converted, tmp_path, "lm", provider="cuda", instances=3, max_delay_us=250, threads=4)
    config = parsed(folder)
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=SCHEMA)
    assert (config.name, config.backend, config.default_model_filename) == ("lm", "onnxruntime", "model.onnx")
    assert config.max_batch_size == 8
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("input_ids", schema.TYPE_INT64, [-1])]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [("logits", schema.TYPE_FP32, [-1, 256])]
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    assert [(group.count, group.kind) for group in config.instance_group] == [(3, schema.ModelInstanceGroup.KIND_GPU)]
    assert config.parameters["intra_op_thread_count"].string_value == "4"


def test_the_library_is_named_by_its_path_in_the_host(converted: Path, tmp_path: Path) -> None:
    if custom_ops.library_path() is None:
        pytest.skip("the custom-op library is not built here")
    default = parsed(write_triton_model(converted, tmp_path, "lm"))
    assert list(default.model_operations.op_library_filename) == ["/models/lm/1/libdynorm_ops.so"]
    elsewhere = write_triton_model(converted, tmp_path / "b", "lm", host_repository="/srv/triton/")
    assert list(parsed(elsewhere).model_operations.op_library_filename) == ["/srv/triton/lm/1/libdynorm_ops.so"]
    assert (elsewhere / "1" / "libdynorm_ops.so").read_bytes() == custom_ops.library_path().read_bytes()
    with pytest.raises(UsageError, match="'models' must be an absolute path"):
        write_triton_model(converted, tmp_path, "other", host_repository="models")


@pytest.mark.parametrize(("model", "library"), [("converted", False), ("original", True)])
def test_no_library_where_none_is_wanted_or_used(converted: Path, tmp_path: Path, model: str, library: bool) -> None:
    folder = write_triton_model(converted if model == "converted" else MODEL, tmp_path, "lm", library=library)
    assert not list(parsed(folder).model_operations.op_library_filename)
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["model.onnx"]


ALL_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float": "TYPE_FP32",
    "double": "TYPE_FP64",
    "string": "TYPE_STRING",
}


def test_all_element_types(tmp_path: Path) -> None:
    inputs = ", ".join(f"{name}[N, 2] x_{name}" for name in ALL_TYPES)
    outputs = ", ".join(f"{name}[N, 2] y_{name}" for name in ALL_TYPES)
    body = "\n".join(f"y_{name} = Identity(x_{name})" for name in ALL_TYPES)
    config = parsed(
        write_triton_model(saved(f"g ({inputs}) => ({outputs}) {{ {body} }}", tmp_path / "a.onnx"), tmp_path)
    )
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=SCHEMA)
    assert config.name == "a"
    for side, prefix in ((config.input, "x_"), (config.output, "y_")):
        assert {t.name: schema.DataType.Name(t.data_type) for t in side} == {
            prefix + name: triton for name, triton in ALL_TYPES.items()
        }


@pytest.mark.parametrize(
    ("first_axes", "batch"),
    [
        (("N, 4", "N, 4"), 8),  # one name: a batch
        (("4, 4", "4, 4"), 0),  # fixed
        (("N, 4", "M, 4"), 0),  # two names: nothing says that they agree
        (("N, 4", "2, 2, 4"), 0),
    ],
)
def test_a_batch_is_a_shared_free_first_axis(tmp_path: Path, first_axes: tuple[str, str], batch: int) -> None:
    into, out = first_axes
    path = saved(f"g (float[{into}] x, float[{into}] z) => (float[{out}] y) {{ y = Add(x, z) }}", tmp_path / "g.onnx")
    config = parsed(write_triton_model(path, tmp_path / "repository"))
    sizes = [int(size) if size.isdigit() else -1 for size in into.split(", ")]
    assert config.max_batch_size == batch
    assert list(config.input[0].dims) == (sizes[1:] if batch else sizes)
    assert config.HasField("dynamic_batching") == bool(batch)


def test_a_batch_size_that_is_asked_for_is_checked(tmp_path: Path) -> None:
    unnamed = saved("g (float[N, 4] x) => (float[M, 4] y) { y = Relu(x) }", tmp_path / "unnamed.onnx")
    config = parsed(write_triton_model(unnamed, tmp_path / "r", max_batch_size=5))
    assert config.max_batch_size == 5 and list(config.output[0].dims) == [4]
    fixed = saved("g (float[3, 4] x) => (float[3, 4] y) { y = Relu(x) }", tmp_path / "fixed.onnx")
    with pytest.raises(UsageError, match="--max-batch-size 5: the first axis of 'x' is fixed at 3"):
        write_triton_model(fixed, tmp_path / "r", max_batch_size=5)


def test_dims_are_never_empty(tmp_path: Path) -> None:
    scalar = saved("g (float x, float[N] z) => (float[N] y) { y = Mul(x, z) }", tmp_path / "scalar.onnx")
    config = parsed(write_triton_model(scalar, tmp_path / "r"))
    assert config.max_batch_size == 0
    assert [(list(t.dims), t.HasField("reshape")) for t in config.input] == [([1], False), ([-1], False)]
    rows = saved("g (float[N] x, float[N, 2] z) => (float[N] y) { y = Relu(x) }", tmp_path / "rows.onnx")
    config = parsed(write_triton_model(rows, tmp_path / "r"))
    assert config.max_batch_size == 8
    assert [(list(t.dims), t.HasField("reshape")) for t in config.input] == [([1], True), ([2], False)]
    assert not config.input[0].reshape.shape


def test_external_weights_come_along_in_one_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 16] x) => (float[N, 16] y) { h = MatMul(x, a)  y = MatMul(h, b) }"""
    )
    rng = np.random.default_rng(0)
    for name, location in (("a", "weights/a.bin"), ("b", "model.onnx")):  # a name that the repository needs itself
        tensor = numpy_helper.from_array(rng.standard_normal((16, 16)).astype(np.float32), name)
        (source / location).parent.mkdir(exist_ok=True)
        (source / location).write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        model.graph.initializer.append(tensor)
    path = source / "given.onnx"
    path.write_bytes(model.SerializeToString())
    feeds = {"x": rng.standard_normal((3, 16)).astype(np.float32)}
    before = make_session(path, kernels=False).run(None, feeds)[0]
    folder = write_triton_model(path, tmp_path / "r", "g")
    shutil.rmtree(source)
    assert sorted(file.name for file in (folder / "1").iterdir()) == ["model.onnx", "model.onnx.data"]
    np.testing.assert_array_equal(make_session(folder / "1" / "model.onnx", kernels=False).run(None, feeds)[0], before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g () => (float[2] y) { y = Constant<value_floats = [1.0, 2.0]>() }", "has no inputs"),
        ("g (float8e4m3fn[N] x) => (float[N] y) { y = Cast<to = 1>(x) }", "input 'x' has the type FLOAT8E4M3FN"),
        ("g (float[N] x) => (complex64[N] y) { y = Cast<to = 14>(x) }", "output 'y' has the type COMPLEX64"),
        ("g (seq(float[N]) x) => (int64 y) { y = SequenceLength(x) }", "input 'x' is no tensor"),
        ("g (float[N] x) => (float[] y) { y = Relu(x) }", "output 'y' has no shape"),
    ],
)
def test_what_cannot_be_served_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = saved(text, tmp_path / "g.onnx")
    with pytest.raises(ModelError, match=message):
        write_triton_model(path, tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("kind", "triton"), [("bfloat16", "TYPE_BF16"), ("string", "TYPE_STRING")])
def test_what_numpy_cannot_hand_over_is_named(tmp_path: Path, kind: str, triton: str) -> None:
    foreign = saved(f"g ({kind}[N] x) => ({kind}[N] y) {{ y = Identity(x) }}", tmp_path / "g.onnx")
    with pytest.raises(ModelError, match=f"'x' is {triton}, .* use --backend onnxruntime"):
        write_triton_model(foreign, tmp_path / "r", backend="python")


def test_nothing_is_written_over_and_nothing_half(tmp_path: Path) -> None:
    repository = tmp_path / "r"
    folder = write_triton_model(MODEL, repository, "lm")
    before = (folder / "config.pbtxt").read_text()
    with pytest.raises(UsageError, match="is there already"):
        write_triton_model(MODEL, repository, "lm", max_batch_size=2)
    assert (folder / "config.pbtxt").read_text() == before
    broken = onnx.load(MODEL)
    broken.graph.initializer[0].data_location = TensorProto.EXTERNAL
    broken.graph.initializer[0].ClearField("raw_data")
    broken.graph.initializer[0].external_data.add(key="location", value="gone.bin")
    path = tmp_path / "broken.onnx"
    path.write_bytes(broken.SerializeToString())
    with pytest.raises(ModelError, match=r"gone\.bin"):
        write_triton_model(path, repository, "broken")
    assert [file.name for file in repository.iterdir()] == ["lm"]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"name": "a/b"}, "--name 'a/b'"),
        ({"backend": "tensorrt"}, "--backend 'tensorrt' is not one of onnxruntime, python"),
        ({"provider": "tpu"}, "--provider 'tpu' is not one of cpu, cuda"),
        ({"instances": 0}, "--instances must be at least 1, not 0"),
        ({"max_batch_size": -1}, "--max-batch-size must be at least 0, not -1"),
        ({"max_delay_us": -1}, "--max-delay-us must be at least 0, not -1"),
        ({"threads": -2}, "--threads must be at least 0, not -2"),
        ({"max_length": -1, "backend": "python"}, "--max-length must be at least 0, not -1"),
        ({"max_length": 9}, "--max-length 9 needs --backend python: Triton's own"),
        ({"max_memory_mib": 9}, "--max-memory-mib 9 needs --backend python: Triton's own"),
        (
            {"max_memory_mib": 9, "backend": "python", "provider": "cuda"},
            "--max-memory-mib 9 is of --provider cpu, not of cuda",
        ),
    ],
)
def test_knobs_are_checked(tmp_path: Path, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        write_triton_model(MODEL, tmp_path / "r", **knobs)
    assert not (tmp_path / "r").exists()

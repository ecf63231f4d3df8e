"""The Open Inference Protocol: what clients send is read as they meant it, and what makes no sense is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dynorm_onnx.errors import DataError
from dynorm_onnx.serving.open_inference import check_lengths, check_samples, metadata, read_request, write_response
from dynorm_onnx.serving.tensors import ServedSignature, ServedTensor

NUMBERS = ["bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)), "float16", "float32", "float64"]
ONE = ServedSignature((ServedTensor("x", "TYPE_FP32", (-1, 2), "N"),), (ServedTensor("y", "TYPE_FP32", (-1, 2), "N"),))
SCALAR = ServedSignature((ServedTensor("s", "TYPE_FP64", (), None),), ONE.outputs)
GIVEN = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}


def protocol_name(dtype: str) -> str:
    return dtype.upper().replace("FLOAT", "FP")


def body(*inputs: dict[str, Any], **others: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **others}).encode()


@settings(max_examples=60)
@given(st.data(), st.sampled_from(NUMBERS), st.booleans())
def test_any_array_comes_back_as_it_was_sent(data: st.DataObject, dtype: str, binary: bool) -> None:
    shape = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3)
    floats = {"allow_nan": binary, "allow_infinity": binary} if dtype.startswith("float") else {}
    array = data.draw(arrays.arrays(dtype, shape, elements=arrays.from_dtype(np.dtype(dtype), **floats)))
    tensor = ServedTensor("x", f"TYPE_{protocol_name(dtype)}", (-1,) * array.ndim, None)
    entry: dict[str, Any] = {"name": "x", "datatype": protocol_name(dtype), "shape": list(array.shape)}
    raw = array.tobytes() if binary else b""
    entry |= {"parameters": {"binary_data_size": len(raw)}} if binary else {"data": array.tolist()}
    head = body(entry, id="7", parameters={"binary_data_output": binary})
    request = read_request(head + raw, str(len(head)) if binary else None, ServedSignature((tensor,), (tensor,)))
    np.testing.assert_array_equal(request.feeds["x"], array)
    assert request.feeds["x"].dtype == array.dtype
    answer, length = write_response("m", request, {"x": array})
    said = json.loads(answer[:length])
    assert (said["model_name"], said["id"]) == ("m", "7")
    (output,) = said["outputs"]
    back = np.frombuffer(answer[length:], dtype) if binary else np.array(output["data"], dtype)
    assert (length is None) == (not binary)
    np.testing.assert_array_equal(back.reshape(output["shape"]), array)


def test_the_clients_of_triton_understand_it() -> None:
    http = pytest.importorskip("tritonclient.http", reason="pip install 'dynorm-onnx[serving]'")
    array = np.array([[0.5, -2.0]], np.float32)
    tensor = http.InferInput("x", [1, 2], "FP32")
    tensor.set_data_from_numpy(array)
    asked = [http.InferRequestedOutput("y", binary_data=True)]
    sent, length = http.InferenceServerClient.generate_request_body([tensor], outputs=asked, request_id="1")
    request = read_request(sent, str(length), ONE)
    np.testing.assert_array_equal(request.feeds["x"], array)
    answer, head = write_response("m", request, {"y": 2 * array})
    result = http.InferenceServerClient.parse_response_body(answer, header_length=head)
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * array)


@pytest.mark.parametrize("shape", [[], [1]])
def test_scalars_come_with_and_without_an_axis(shape: list[int]) -> None:
    request = read_request(body({"name": "s", "datatype": "FP64", "shape": shape, "data": [0.5]}), None, SCALAR)
    assert request.feeds["s"].shape == () and request.feeds["s"] == 0.5


def test_outputs_in_the_order_asked_for() -> None:
    two = ServedSignature(ONE.inputs, (*ONE.outputs, ServedTensor("z", "TYPE_INT8", (-1,), "N")))
    request = read_request(body(GIVEN, outputs=[{"name": "z"}, {"name": "y"}]), None, two)
    answer, _ = write_response("m", request, {"y": np.ones((1, 2), np.float32), "z": np.int8(3)})
    assert [(each["name"], each["shape"]) for each in json.loads(answer)["outputs"]] == [("z", [1]), ("y", [1, 2])]


def test_metadata() -> None:
    said = metadata("m", ONE)
    assert said["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}] and said["versions"] == ["1"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "the body is no request of the Open Inference Protocol"),
        (b'{"inputs": 3}', "the body is no request of the Open Inference Protocol"),
        (b"[]", "the body is no request of the Open Inference Protocol"),
        (body(), "the request lacks the input 'x'"),
        (body({**GIVEN, "name": "z"}), "the model has no input 'z'; it has x"),
        (body(GIVEN, outputs=[{"name": "z"}]), "the model has no output 'z'; it has y"),
        (body({**GIVEN, "datatype": "FP16"}), "input 'x' is FP16, and the model takes FP32"),
        (body({**GIVEN, "shape": [1, -2]}), r"input 'x': \[1, -2\] is no shape"),
        (body({**GIVEN, "shape": "1x2"}), "input 'x': '1x2' is no shape"),
        (body({**GIVEN, "shape": [2]}), r"input 'x' has the shape \[2\], and the model takes \[-1, 2\]"),
        (body({**GIVEN, "shape": [2, 1]}), r"input 'x' has the shape \[2, 1\], and the model takes \[-1, 2\]"),
        (body({**GIVEN, "shape": [2, 2]}), r"input 'x': 2 values do not make the shape \[2, 2\]"),
        (body({**GIVEN, "data": ["a", "b"]}), "input 'x': its data is no array of FP32"),
        (body({**GIVEN, "data": [[1, 2], [3]]}), "input 'x': its data is no array of FP32"),
        (body({**GIVEN, "parameters": {"binary_data_size": 8}}), "binary_data_size is 8, and 0 bytes are left"),
        (body({**GIVEN, "parameters": {"binary_data_size": True}}), "binary_data_size is True, and 0 bytes are left"),
        (body({**GIVEN, "parameters": [1]}), "the body is no request of the Open Inference Protocol"),
        (b'{"inputs": ' + b"[" * 100_000, "the body is no request of the Open Inference Protocol"),
        (body(GIVEN, GIVEN), "the input 'x' is given twice"),
        (body({**GIVEN, "shape": [True, 2]}), r"input 'x': \[True, 2\] is no shape"),
        (body({**GIVEN, "data": None}), "its data is no array of FP32: None is no list"),
        (body({**GIVEN, "data": ["1", "2"]}), "its data is no array of FP32: it holds '1'"),
        (body({**GIVEN, "data": [None, 2]}), "its data is no array of FP32: it holds None"),
        (body({**GIVEN, "data": [[True], 2]}), "its data is no array of FP32: it holds True"),
    ],
)
def test_what_makes_no_sense_is_named(content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_request(content, None, ONE)


def test_integers_are_not_cut_from_fractions() -> None:
    whole = ServedSignature((ServedTensor("x", "TYPE_INT64", (-1,), "N"),), ONE.outputs)
    entry = {"name": "x", "datatype": "INT64", "shape": [2]}
    assert read_request(body({**entry, "data": [2**63 - 1, -5]}), None, whole).feeds["x"].tolist() == [2**63 - 1, -5]
    for data in ([1.5, 2], [2**63, 1]):
        with pytest.raises(DataError, match="input 'x': its data is no array of INT64"):
            read_request(body({**entry, "data": data}), None, whole)


def test_bytes_that_are_of_no_input() -> None:
    head = body({**GIVEN, "data": None, "parameters": {"binary_data_size": 8}})
    with pytest.raises(DataError, match="4 bytes behind the JSON are of no input's binary_data_size"):
        read_request(head + bytes(12), str(len(head)), ONE)


def test_an_error_is_short_however_long_the_request_was() -> None:
    for content in (body({**GIVEN, "name": "z" * 10**6}), body({**GIVEN, "shape": [-1] * 10**5})):
        with pytest.raises(DataError) as caught:
            read_request(content, None, ONE)
        assert len(str(caught.value)) < 400


def test_axes_that_are_too_long() -> None:
    request = read_request(body({**GIVEN, "shape": [3, 2], "data": [1] * 6}), None, ONE)
    check_lengths(request, ONE, 0, batched=False)
    check_lengths(request, ONE, 1, batched=True)  # the free axis is the samples', and the other is fixed
    with pytest.raises(
        DataError, match=r"input 'x' has the shape \[3, 2\], and no axis may be longer than max_length, 2"
    ):
        check_lengths(request, ONE, 2, batched=False)


@pytest.mark.parametrize("length", ["x", "-1", "9999"])
def test_a_length_that_is_none(length: str) -> None:
    with pytest.raises(DataError, match=f"Inference-Header-Content-Length is '{length}', and the body has"):
        read_request(body(GIVEN), length, ONE)


def test_a_length_of_thousands_of_digits() -> None:
    with pytest.raises(DataError, match="Inference-Header-Content-Length is '999"):
        read_request(body(GIVEN), "9" * 5000, ONE)


def test_json_cannot_say_what_is_not_finite() -> None:
    with pytest.raises(DataError, match="the output 'y' is not finite, which JSON cannot say: ask for binary_data"):
        write_response("m", read_request(body(GIVEN), None, ONE), {"y": np.array([[np.nan, 1]], np.float32)})


def test_samples_that_no_batch_can_hold() -> None:
    two = ServedSignature((*ONE.inputs, ServedTensor("z", "TYPE_INT8", (-1,), "N")), ONE.outputs)
    request = read_request(body(GIVEN, {"name": "z", "datatype": "INT8", "shape": [2], "data": [1, 2]}), None, two)
    with pytest.raises(DataError, match=r"the inputs have different numbers of samples: \{'x': 1, 'z': 2\}"):
        check_samples(request, 4)
    one = read_request(body({**GIVEN, "shape": [2, 2], "data": [1, 2, 3, 4]}), None, ONE)
    check_samples(one, 2)
    with pytest.raises(DataError, match="2 samples are more than max_batch_size, 1"):
        check_samples(one, 1)

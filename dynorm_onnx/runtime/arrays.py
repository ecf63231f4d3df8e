"""Numpy arrays in, numpy arrays out, for every tensor type, those that numpy lacks (bfloat16) included.

ONNX Runtime's Python binding has no numpy type for bfloat16 and the 8-bit floats. Here they are
`ml_dtypes` arrays, so that no caller has to know.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from dynorm_onnx.errors import DataError, ModelError, NoMemoryError
from dynorm_onnx.runtime.library import onnxruntime

Feeds = dict[str, np.ndarray]
"""One batch: an array for every input, by the input's name; strings in arrays of Python's, a sequence as a list."""

FOREIGN_TYPES: dict[np.dtype, int] = {
    np.dtype(ml_dtypes.bfloat16): onnx.TensorProto.BFLOAT16,
    np.dtype(ml_dtypes.float8_e4m3fn): onnx.TensorProto.FLOAT8E4M3FN,
    np.dtype(ml_dtypes.float8_e4m3fnuz): onnx.TensorProto.FLOAT8E4M3FNUZ,
    np.dtype(ml_dtypes.float8_e5m2): onnx.TensorProto.FLOAT8E5M2,
    np.dtype(ml_dtypes.float8_e5m2fnuz): onnx.TensorProto.FLOAT8E5M2FNUZ,
}
"""The types that the binding cannot take as numpy arrays, with their number in ONNX."""

_NO_MEMORY = ("std::bad_alloc", "Failed to allocate memory", "Cannot allocate memory")
_FOREIGN_DTYPES = {number: dtype for dtype, number in FOREIGN_TYPES.items()}


def is_float(array: np.ndarray) -> bool:
    """Whether the array holds floating-point numbers, bfloat16 included."""
    return np.issubdtype(array.dtype, np.floating) or array.dtype in FOREIGN_TYPES


def is_tensor_of_numbers(feed: Any) -> bool:
    """Whether a feed is an array that OrtValues can hold: no strings, and no sequence."""
    return isinstance(feed, np.ndarray) and feed.dtype.kind not in "OSU"


def feed_value(array: np.ndarray, device: str = "cpu") -> Any:
    """The OrtValue of an array of any type and shape, on "cpu" (sharing its memory) or on "cuda" (a copy)."""
    ort = onnxruntime()
    array = np.ascontiguousarray(array).reshape(array.shape)  # ascontiguousarray makes scalars 1-D
    number = FOREIGN_TYPES.get(array.dtype)
    if number is None:
        return ort.OrtValue.ortvalue_from_numpy(array, device)
    if device == "cpu":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, number)
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), number, device)
    value.update_inplace(array.view(f"u{array.itemsize}"))  # compares byte sizes, not types
    return value


def fetch_value(value: Any) -> Any:
    """The array of a tensor OrtValue in host memory, copied; sequences and maps as Python values."""
    if not value.is_tensor() or value.element_type() not in _FOREIGN_DTYPES:
        return value.numpy()
    dtype = _FOREIGN_DTYPES[value.element_type()]
    array = np.empty(tuple(value.shape()), dtype)
    ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array


def run(session: Any, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> Feeds:
    """Run a session once.

    Args:
        session: an onnxruntime.InferenceSession.
        feeds: an array for every input; further names are an error of ONNX Runtime's.
        outputs: names of the outputs wanted, by default all.

    Returns:
        The outputs by name, in the order asked for.

    Raises:
        DataError: the feeds do not fit the inputs. ModelError: the model failed while running; NoMemoryError where it
            failed for that.
    """
    names = [output.name for output in session.get_outputs()] if outputs is None else list(outputs)
    types = {output.name: output.type for output in session.get_outputs()}
    foreign = any(not isinstance(array, list) and np.asarray(array).dtype in FOREIGN_TYPES for array in feeds.values())
    foreign = foreign or any("bfloat16" in types.get(name, "") or "float8" in types.get(name, "") for name in names)
    try:
        if not foreign:
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))
        values = {name: feed_value(np.asarray(array)) for name, array in feeds.items()}
        results = session.run_with_ort_values(names, values)
        return {name: fetch_value(value) for name, value in zip(names, results, strict=True)}
    except _argument_errors() as error:
        raise DataError(f"the feeds do not fit the model's inputs: {first_line(error)}") from error
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        if lacks_memory(error):
            raise NoMemoryError(f"not enough memory to run the model: {first_line(error)}") from error
        raise ModelError(f"ONNX Runtime failed while running the model: {first_line(error)}") from error


def _argument_errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    # ValueError: the binding's own check that every input has a feed
    return InvalidArgument, ValueError


def first_line(error: BaseException) -> str:
    """ONNX Runtime's message without its prefix and call stack."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].removeprefix("[ONNXRuntimeError] : ")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of ONNX Runtime's means that, and no fault of the model."""
    return any(sign in str(error) for sign in _NO_MEMORY)

"""Whether an array fits the input that it is given for: rank, fixed sizes, type, rows of its table."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynorm_onnx.calibration.data.signature import InputSpec
from dynorm_onnx.errors import DataError
from dynorm_onnx.runtime.arrays import is_float


def fitted(spec: InputSpec, array: Any) -> Any:
    """The array in the input's type; of an input that takes a sequence of tensors, the list of its arrays.

    Casts are silent where they keep what matters: between integer types and bool as long as every
    value stays, between float types as long as nothing finite becomes infinite. Strings become arrays of Python's.

    Raises DataError for another type, rank or fixed size, and for indices outside their table.
    """
    if not spec.is_sequence:
        return _fitted(spec, np.asarray(array))
    if not isinstance(array, list):
        raise DataError(f"input {spec.name!r} must be {spec.describe()}; the data has one {_described(array)}")
    return [_fitted(spec, np.asarray(element)) for element in array]


def _fitted(spec: InputSpec, array: np.ndarray) -> np.ndarray:
    if not _shape_fits(spec, array):
        raise _misfit(spec, array)
    cast = _cast(spec, array)
    # position_ids of padding may be anything: what reads them is masked
    if spec.bound is not None and cast.size and spec.role != "position_ids":
        low, high = int(cast.min()), int(cast.max())
        if low < 0 or high >= spec.bound:
            raise DataError(
                f"input {spec.name!r} indexes a table of {spec.bound} rows, so it must lie in "
                f"0..{spec.bound - 1}; the data holds {low if low < 0 else high}"
            )
    return cast


def of_strings(array: np.ndarray) -> np.ndarray | None:
    """The array with Python's strings as elements; None where it holds anything else. Bytes are read as UTF-8."""
    try:
        texts = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
    except UnicodeDecodeError:
        return None
    if texts.dtype.kind == "U":
        return texts.astype(object)
    return texts if texts.dtype == object and all(isinstance(element, str) for element in texts.flat) else None


def _shape_fits(spec: InputSpec, array: np.ndarray) -> bool:
    if spec.shape is None:
        return True
    return len(spec.shape) == array.ndim and all(
        not isinstance(want, int) or want == have for want, have in zip(spec.shape, array.shape, strict=True)
    )


def _cast(spec: InputSpec, array: np.ndarray) -> np.ndarray:
    if spec.holds_strings:
        texts = of_strings(array)
        if texts is None:
            raise _misfit(spec, array)
        return texts
    if array.dtype == spec.dtype:
        return array
    if array.dtype.kind in "biu" and spec.dtype.kind in "biu":
        cast = array.astype(spec.dtype)
        if np.array_equal(cast, array):
            return cast
    if is_float(array) and is_float(np.empty(0, spec.dtype)):
        with np.errstate(over="ignore"):
            cast = array.astype(spec.dtype)
        if np.array_equal(np.isfinite(cast), np.isfinite(array)):
            return cast
    raise _misfit(spec, array)


def _misfit(spec: InputSpec, array: np.ndarray) -> DataError:
    return DataError(f"input {spec.name!r} must be {spec.describe()}; the data has {_described(array)}")


def _described(array: Any) -> str:
    """Type and shape of what was given, as InputSpec.describe() has them."""
    if not isinstance(array, np.ndarray):
        return type(array).__name__
    kind = str(array.dtype) if of_strings(array) is None else "string"
    return f"{kind} [{', '.join(map(str, array.shape))}]"

"""Whether an array fits the input that it is given for: rank, fixed sizes, type, rows of its table."""

from __future__ import annotations

import numpy as np

from dynorm_onnx.calibration.data.signature import InputSpec
from dynorm_onnx.errors import DataError
from dynorm_onnx.runtime.arrays import is_float


def fitted(spec: InputSpec, array: np.ndarray) -> np.ndarray:
    """The array in the input's type.

    Casts are silent where they keep what matters: between integer types and bool as long as every
    value stays, between float types as long as nothing finite becomes infinite.

    Raises DataError for another type, rank or fixed size, and for indices outside their table.
    """
    array = np.asarray(array)
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


def _shape_fits(spec: InputSpec, array: np.ndarray) -> bool:
    if spec.shape is None:
        return True
    return len(spec.shape) == array.ndim and all(
        not isinstance(want, int) or want == have for want, have in zip(spec.shape, array.shape, strict=True)
    )


def _cast(spec: InputSpec, array: np.ndarray) -> np.ndarray:
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
    return DataError(
        f"input {spec.name!r} must be {spec.describe()}; the data has {array.dtype} "
        f"[{', '.join(map(str, array.shape))}]"
    )

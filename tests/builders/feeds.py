"""Inputs for a model that nobody described: from the files beside it, or drawn from its signature."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def stored_feeds(path: Path, model: onnx.ModelProto) -> dict[str, np.ndarray] | None:
    """The inputs of onnx's own test layout, test_data_set_0/input_N.pb, where they lie beside the model."""
    files = sorted(path.parent.glob("test_data_set_0/input_*.pb"), key=lambda f: int(f.stem.split("_")[1]))
    if not files:
        return None
    arrays = [numpy_helper.to_array(onnx.load_tensor(str(file))) for file in files]
    return dict(zip(_fed(model), arrays, strict=True))


def drawn_feeds(model: onnx.ModelProto, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Feeds to try in turn, with other sizes for the symbolic dimensions; integers are 0 or 1."""
    for batch, other in ((2, 4), (1, 4), (1, 1), (2, 8), (1, 8), (4, 4)):
        rng = np.random.default_rng(seed)
        yield {name: _draw(rng, value.type.tensor_type, batch, other) for name, value in _fed(model).items()}


def _fed(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    known = {tensor.name for tensor in model.graph.initializer}
    return {value.name: value for value in model.graph.input if value.name not in known}


def _draw(rng: np.random.Generator, typed: onnx.TypeProto.Tensor, batch: int, other: int) -> np.ndarray:
    shape = []
    for place, dim in enumerate(typed.shape.dim):
        symbolic = batch if place == 0 or "batch" in dim.dim_param.lower() else other
        shape.append(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else symbolic)
    if typed.elem_type == TensorProto.BFLOAT16:
        return rng.normal(size=shape).astype(ml_dtypes.bfloat16)
    dtype = helper.tensor_dtype_to_np_dtype(typed.elem_type)
    if np.issubdtype(dtype, np.floating):
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)

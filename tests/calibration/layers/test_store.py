"""Re-fitted weights are the same whether they are kept in memory or in files, and the files go away."""

from __future__ import annotations

import gc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from dynorm_onnx.calibration.layers.store import WeightStore


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_above_the_limit_are_read_back_from_files(temporary_folder: Path, dtype: type) -> None:
    rng = np.random.default_rng(0)
    store = WeightStore(1000)
    first, second = (rng.normal(size=(4, size)).astype(dtype) for size in (5, 500))
    assert store.keep("first", first) is first
    tensor = store.keep("second", second)
    assert isinstance(tensor, ir.LazyTensor)
    assert (tensor.name, tensor.dtype, tensor.nbytes) == ("second", ir.DataType.from_numpy(second.dtype), second.nbytes)
    assert tensor.numpy().tobytes() == second.tobytes() == tensor.tobytes()
    del store
    gc.collect()
    assert tensor.numpy().shape == second.shape  # the tensor keeps its file
    assert list(temporary_folder.iterdir())
    del tensor
    gc.collect()
    assert not list(temporary_folder.iterdir())

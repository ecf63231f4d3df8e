"""A quickly converted shipped model, shared by the tests of serving."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynorm_onnx import convert_model
from tests.shipped import MODEL, TEXT


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with DyISRU in the place of all norms; few samples, since quality is not what is tested."""
    path = tmp_path_factory.mktemp("converted") / "byte_llama.dyisru.onnx"
    convert_model(MODEL, output=path, data=TEXT, samples=8, method="fit", validate=False, time=False, rotate=False)
    return path

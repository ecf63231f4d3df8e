"""Finding and loading the library from Python."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest

from dynorm_onnx import custom_ops
from dynorm_onnx.errors import ProviderError
from dynorm_onnx.runtime.session import has_kernels


def nowhere(name: str) -> importlib.metadata.Distribution:
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package that was installed without a library."""
    monkeypatch.delenv("DYNORM_LIBRARY", raising=False)
    monkeypatch.setattr(custom_ops, "__file__", str(tmp_path / "custom_ops.py"))
    monkeypatch.setattr(custom_ops, "_in_distribution", custom_ops._in_distribution.__wrapped__)  # asks each time
    monkeypatch.setattr(importlib.metadata, "distribution", nowhere)


@pytest.mark.usefixtures("without_library")
def test_a_package_without_library_says_so() -> None:
    assert custom_ops.library_path() is None
    assert custom_ops.library_providers() == ()
    with pytest.raises(ProviderError, match="installed without its custom-op library"):
        custom_ops.register(ort.SessionOptions())


def test_the_environment_names_another_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "another.so"
    shutil.copy(str(custom_ops.library_path()), copy)
    monkeypatch.setenv("DYNORM_LIBRARY", str(copy))
    assert custom_ops.library_path() == copy
    assert "CPUExecutionProvider" in custom_ops.library_providers()


@pytest.mark.usefixtures("without_library")
def test_an_installed_distribution_is_searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An editable install keeps the built file away from the sources."""
    installed = tmp_path / "site-packages" / "dynorm_onnx" / "libdynorm_ops.so"
    installed.parent.mkdir(parents=True)
    installed.touch()

    class Installed:
        def locate_file(self, path: str) -> Path:
            return tmp_path / "site-packages" / path

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed())
    assert custom_ops.library_path() == installed


@pytest.mark.parametrize(
    "use",
    [
        custom_ops.library_path,
        custom_ops.library_providers,
        lambda: custom_ops.register(ort.SessionOptions()),
        lambda: has_kernels("cpu"),
    ],
)
def test_a_missing_library_is_named(use: Callable[[], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = tmp_path / "missing.so"
    monkeypatch.setenv("DYNORM_LIBRARY", str(missing))
    with pytest.raises(ProviderError, match="DYNORM_LIBRARY") as caught:
        use()
    assert str(missing) in str(caught.value)


def test_another_library_has_no_providers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.so"
    wrong.write_text("not a library")
    monkeypatch.setenv("DYNORM_LIBRARY", str(wrong))
    with pytest.raises(ProviderError, match=r"wrong\.so is not"):
        custom_ops.library_providers()


def test_a_file_that_is_no_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.so"
    wrong.write_text("not a library")
    monkeypatch.setenv("DYNORM_LIBRARY", str(wrong))
    with pytest.raises(ProviderError, match=r"wrong\.so"):
        custom_ops.register(ort.SessionOptions())

"""The library in every ONNX Runtime that it must serve, in one that is too old, and with every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from dynorm_onnx import custom_ops
from dynorm_onnx.functions import OPERATORS
from tests.custom_ops.nodes import NUMPY_TYPE, Node, model_of
from tests.tolerances import TOLERANCE, relative_error

SCRIPT = Path(__file__).with_name("run_elsewhere.py")
RUNTIMES = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dynorm-onnx" / "onnxruntime"
SERVED = ["1.21.0", "1.26.0", "1.32.0"]
TOO_OLD = "1.20.1"


def nodes() -> dict[str, Node]:
    """Every operator and type; an odd number of channels, so that tails are met too."""
    return {
        f"{op_type}_{dtype}": Node(op_type, dtype, channels=77, coupled=33)
        for op_type in OPERATORS
        for dtype in NUMPY_TYPE
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and its feeds for every node."""
    for name, node in nodes().items():
        onnx.save(model_of(node), tmp_path / f"{name}.onnx")
        np.savez(tmp_path / f"{name}.npz", **node.feeds(3, 4))  # type: ignore[arg-type]
    return tmp_path


def run_in(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(custom_ops.library_path()), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def check_outputs(folder: Path) -> None:
    for name, node in nodes().items():
        feeds = node.feeds(3, 4)
        with np.load(folder / f"{name}.out.npz") as outputs:
            for output, expected in zip(outputs.values(), node.expected(feeds), strict=True):
                assert relative_error(output, expected) < TOLERANCE[node.dtype], name


def folder_of(version: str) -> Path | None:
    """A folder with this onnxruntime, made once and kept: without what it depends on, which is here, and None for the
    version that is here as well. Skips the test where pip cannot fetch the wheel."""
    if version == ort.__version__:
        return None
    folder = RUNTIMES / f"{version}-{sys.version_info.major}.{sys.version_info.minor}"
    ready = folder / "ready"
    if not ready.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
        installed = subprocess.run([*command, f"onnxruntime=={version}"], capture_output=True, text=True)
        if installed.returncode:
            pytest.skip(f"pip cannot install onnxruntime {version}: {installed.stderr.strip().splitlines()[-1]}")
        ready.touch()
    return folder


def run_with(version: str, models: Path) -> subprocess.CompletedProcess[str]:
    folder = folder_of(version)
    return run_in(models) if folder is None else run_in(models, PYTHONPATH=str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("version", SERVED)
def test_loads_in(version: str, folder: Path) -> None:
    ran = run_with(version, folder)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == version
    check_outputs(folder)


@pytest.mark.slow
def test_an_older_runtime_gets_a_sentence(folder: Path) -> None:
    ran = run_with(TOO_OLD, folder)
    assert ran.returncode == 1, ran.stderr
    assert f"need ONNX Runtime 1.21 or newer, and this is {TOO_OLD}" in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "neon", "unheard-of"])
def test_runs_with_instruction_set(isa: str, folder: Path) -> None:
    """A set that this processor lacks is passed over."""
    ran = run_in(folder, DYNORM_ISA=isa)
    assert ran.returncode == 0, ran.stderr
    check_outputs(folder)

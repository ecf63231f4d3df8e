"""The examples in other languages: what they print is what a session says of the same tokens."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dynorm_onnx import custom_ops
from dynorm_onnx.runtime.session import make_session
from tests.custom_ops.official import compiler, official_headers

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TOKENS = [str(byte) for byte in b"def main():\n    re"]
NPM_INSTALL = "npm install --ignore-scripts onnxruntime-node, with NODE_PATH naming its node_modules"


def told(model: Path, *, kernels: bool) -> list[str]:
    session = make_session(model, kernels=kernels, threads=1)
    logits = session.run(["logits"], {"input_ids": np.array([TOKENS], np.int64)})[0]
    return [str(token) for token in logits[0].argmax(-1)]


def ran(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, env=os.environ | environment
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/cpp, compiled as the docs say, against the ONNX Runtime that Python has."""
    folder = tmp_path_factory.mktemp("cpp")
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None
    (runtime,) = (Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*")
    (folder / "libonnxruntime.so.1").symlink_to(runtime)  # its soname, which the wheel's file is not called
    (folder / "libonnxruntime.so").symlink_to(runtime)
    headers = official_headers(folder / "debian")
    flags = ["-std=c++17", "-Wall", "-Werror", f"-I{headers}", f"-L{folder}", f"-Wl,-rpath,{folder}"]
    built = ran([compiler(), str(EXAMPLES / "cpp" / "run.cpp"), *flags, "-lonnxruntime", "-o", "run"], folder)
    assert built.returncode == 0, built.stderr
    return folder / "run"


@pytest.mark.slow
def test_cpp(program: Path, converted: Path) -> None:
    library = custom_ops.library_path()
    if library is None:
        pytest.skip("the custom-op library is not built here")
    said = ran([str(program), str(converted), str(library), *TOKENS], program.parent)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split() == told(converted, kernels=True)


@pytest.mark.slow
def test_cpp_says_what_is_wrong(program: Path, converted: Path) -> None:
    said = ran([str(program), str(converted), "gone.so", *TOKENS], program.parent)
    assert said.returncode == 1 and "gone.so" in said.stderr


def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("no node: apt-get install nodejs npm")
    return found


def test_javascript(converted: Path, tmp_path: Path) -> None:
    program = node()
    packages = [Path(path) for path in os.environ.get("NODE_PATH", "").split(os.pathsep) if path]
    folder = next((path for path in packages if (path / "onnxruntime-node").is_dir()), None)
    if folder is None:
        pytest.skip(f"no onnxruntime-node: {NPM_INSTALL}")
    (tmp_path / "node_modules").symlink_to(folder.absolute())  # modules are looked for there alone, not in NODE_PATH
    shutil.copy(EXAMPLES / "javascript" / "run.mjs", tmp_path)
    said = ran([program, "run.mjs", str(converted), *TOKENS], tmp_path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split() == told(converted, kernels=False)


def test_the_docs_print_the_files() -> None:
    docs = (ROOT / "docs" / "languages.md").read_text(encoding="utf-8")
    for name in ("cpp/run.cpp", "csharp/Run.cs", "java/Run.java", "javascript/run.mjs"):
        text = (EXAMPLES / name).read_text(encoding="utf-8")
        assert re.search(rf"```\w+\n{re.escape(text)}```", docs), f"docs/languages.md does not print {name} as it is"

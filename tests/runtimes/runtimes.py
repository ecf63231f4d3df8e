"""The runtimes that converted files are run in, each in a process of its own, and what is needed to have them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"
INSTALL = "make runtimes"
OLDEST, MIDDLE = "1.21.0", "1.26.0"
"""Versions of ONNX Runtime besides that of the environment: the oldest that is supported, and one in between."""
FOLDER = Path(os.environ.get("DYNORM_RUNTIMES", HERE.parents[1] / ".venv" / "runtimes"))
SECONDS = 600


@dataclasses.dataclass(frozen=True)
class Runtime:
    """One row of the table."""

    name: str
    version: str
    program: str  # in PROGRAMS
    target: Path | None = None  # where pip put packages that come before the environment's own

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"

    def require(self) -> None:
        """Skips where the runtime is not installed."""
        if not self.version or (self.target is not None and not self.target.is_dir()):
            pytest.skip(f"needs {self.name}: {INSTALL}")
        if self.program.endswith(".mjs"):
            if shutil.which("node") is None:
                pytest.skip("needs Node.js: apt-get install nodejs npm")
            if not (HERE / "node_modules").is_dir():
                pytest.skip(f"needs {self.name}: {INSTALL}, or npm install in tests/runtimes")

    def run(self, models: Path, results: Path) -> None:
        """Runs every model of a folder; what becomes of NAME.onnx is in NAME.bin or NAME.error of `results`."""
        python = [sys.executable] if self.program.endswith(".py") else ["node"]
        search = {} if self.target is None else {"PYTHONPATH": str(self.target)}
        # not the environment's own paths: the programs run without this project
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | search
        if self.target is None and "PYTHONPATH" in os.environ:
            environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
        subprocess.run(
            [*python, str(PROGRAMS / self.program), str(models), str(results)],
            check=True, env=environment, timeout=SECONDS,
        )  # fmt: skip


def outcome(results: Path, stem: str) -> np.ndarray | str:
    """The output of one model, or what was said instead."""
    output = results / f"{stem}.bin"
    return np.fromfile(output, np.float32) if output.is_file() else (results / f"{stem}.error").read_text()


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _web() -> str:
    return str(json.loads((HERE / "package.json").read_text())["dependencies"]["onnxruntime-web"])


RUNTIMES = (
    *(Runtime("ONNX Runtime", v, "in_onnxruntime.py", FOLDER / "ort" / v) for v in (OLDEST, MIDDLE)),
    Runtime("ONNX Runtime", _installed("onnxruntime"), "in_onnxruntime.py"),
    Runtime("onnxruntime-web, Node.js", _web(), "in_web.mjs"),
    Runtime("OpenVINO", _installed("openvino"), "in_openvino.py"),
    Runtime("onnx's reference evaluator", _installed("onnx"), "in_reference.py"),
)

"""A library of somebody else's operators, compiled for the tests, and a model that has one of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

SOURCE = Path(__file__).with_name("native") / "twice.cpp"
HEADERS = Path(__file__).parents[2] / "custom_ops"
C = 8
RNG = np.random.default_rng(11)
SAMPLES = {"x": RNG.normal(size=(24, 4, C)).astype(np.float32)}


def build(folder: Path) -> Path:
    """libtwice.so with theirs.Twice, y = 2 x in float32; skips where there is no compiler."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler: apt-get install g++")
    library = folder / "libtwice.so"
    options = ["-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", f"-I{HEADERS}"]
    subprocess.run([compiler, *options, str(SOURCE), "-o", str(library)], check=True, capture_output=True)
    return library


def write_model(folder: Path) -> Path:
    """A norm between two nodes of theirs.Twice, of the types of which nothing but ONNX Runtime can tell."""
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18, "theirs" : 1]>
        g (float[n,4,{C}] x) => (float[n,4,{C}] y) {{
            t = theirs.Twice(x)
            h = LayerNormalization<axis = -1>(t, w)
            m = MatMul(h, lin)
            y = theirs.Twice(m)
        }}"""
    )
    weights = {"w": RNG.uniform(0.5, 1.5, C), "lin": RNG.normal(size=(C, C))}
    model.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items())
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"

"""The command on a small model of every opset: weights beside the file, fitted, re-fitted, rewritten, with and without
the kernels.

`make compatibility` runs every opset, and reads which ones ran from the names of these tests; `make test` some of them.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from dynorm_onnx.convert import main
from dynorm_onnx.runtime.session import make_session
from tests.builders.graph import Graph
from tests.builders.installed import NEWEST
from tests.builders.layer_forms import textbook
from tests.builders.rms_forms import divided
from tests.tolerances import TOLERANCE, relative_error

CHANNELS, SAMPLES, TOKENS = 8, 6, 7
OLDEST = 11
ALWAYS = {OLDEST, 17, 23, NEWEST}
OPSETS = [
    pytest.param(opset, id=f"opset{opset}", marks=() if opset in ALWAYS else pytest.mark.compatibility)
    for opset in range(OLDEST, NEWEST + 1)
]


def write(opset: int, folder: Path) -> tuple[Path, Path]:
    """A model with a norm of each kind, its weights in a file beside it, and its data."""
    g = Graph("float32", opset, seed="opset")
    x = g.input("x", g.rng.normal(size=(2, TOKENS, CHANNELS)).astype(np.float32), ("batch", "tokens", CHANNELS))
    for norm in (partial(divided, how="Mul"), partial(textbook, weight=False, bias=False)):
        matrix = g.initializer(g.rng.normal(0, CHANNELS**-0.5, (CHANNELS, CHANNELS)))
        x = g.op("Add", x, g.op("MatMul", norm(g, g.op("Tanh", x)), matrix))
    g.output(x, "y")
    model, data = folder / "model.onnx", folder / "data.npz"
    onnx.save(g.model(), model, save_as_external_data=True, location="model.bin", size_threshold=64)
    np.savez(data, x=g.rng.normal(size=(SAMPLES, TOKENS, CHANNELS)).astype(np.float32))
    return model, data


@pytest.mark.parametrize("opset", OPSETS)
def test_converted_at(opset: int, tmp_path: Path) -> None:
    model, data = write(opset, tmp_path)
    feeds = {"x": np.load(data)["x"]}

    def converted(*knobs: str) -> Path:
        output = tmp_path / ("_".join(knobs).replace("-", "") + ".onnx")
        assert main([*map(str, (model, "--data", data, "-o", output)), *knobs, "--no-time", "-q"]) == 0
        onnx.checker.check_model(output)
        assert output.with_name(f"{output.name}.data").is_file()
        assert {entry.domain: entry.version for entry in onnx.load(output).opset_import}[""] == opset
        return output

    def outputs(path: Path, *, kernels: bool) -> np.ndarray:
        return make_session(path, kernels=kernels).run(None, feeds)[0]

    wanted = outputs(model, kernels=False)
    assert relative_error(outputs(converted("--to", "rmsnorm"), kernels=False), wanted) < 1e-5
    fitted = converted("--to", "dyisru", "--method", "fit")
    assert {node.op_type for node in onnx.load(fitted).graph.node if node.domain == "dynorm"} == {"DyISRU"}
    by_bodies, by_kernels = (outputs(fitted, kernels=kernels) for kernels in (False, True))
    assert relative_error(by_kernels, by_bodies) < TOLERANCE["float32"]
    assert relative_error(by_bodies, wanted) < 0.5
    written_out = converted("--to", "derf", "--method", "reconstruct", "--inline")
    assert not onnx.load(written_out).functions
    assert relative_error(outputs(written_out, kernels=False), wanted) < 0.5


@pytest.mark.parametrize("knobs", [(), ("--dry-run",), ("--inline",)], ids=["convert", "dry-run", "inline"])
def test_an_opset_that_onnx_runtime_does_not_know_is_named(
    knobs: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, data = write(17, tmp_path)
    model = onnx.load(path)
    model.opset_import[0].version = 99
    onnx.save(model, path)
    assert main([str(path), "--data", str(data), "-o", str(tmp_path / "out.onnx"), "-q", *knobs]) == 2
    said = capsys.readouterr().err
    assert re.search(r"model\.onnx is of opset 99, and ONNX Runtime [0-9.]+ knows none above \d+; install", said)
    assert not (tmp_path / "out.onnx").exists()

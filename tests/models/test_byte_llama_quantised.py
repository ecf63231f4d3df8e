"""The shipped model's quantisers on converted files: which layers they take; and the bounds of functions' outputs."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

import dynorm_onnx
from dynorm_onnx import convert_model
from tests.builders.execute import run_ort
from tests.custom_ops.nodes import Node, every_operator, model_of
from tests.shipped import FOLDER, MODEL, NORMS, TEXT
from tests.tolerances import TOLERANCE, relative_error

LAYERS, INPUTS = 29, 17  # of 9 norms, 4 attentions and 4 gates, most of them for several layers
IDS = np.frombuffer(TEXT.read_bytes()[-128:], np.uint8).astype(np.int64)[None]
# Relative error of the logits against the converted file's own, and the operators that a layer becomes.
WAYS = {
    "dynamic": (0.06, {"MatMulInteger": LAYERS}),
    "static": (0.09, {"QuantizeLinear": INPUTS, "DequantizeLinear": INPUTS + LAYERS}),
    "four_bits": (0.15, {"MatMulNBits": LAYERS}),
}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return {name: importlib.import_module(name) for name in ("quantise", "quantised")}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "converted.onnx"
    knobs = {"validate": False, "time": False, "rotate": False, "optimize": "none"}
    convert_model(MODEL, data=TEXT, output=path, method="fit", samples=8, **knobs)
    return path


def logits(path: Path) -> np.ndarray:
    return dynorm_onnx.session(path).run(["logits"], {"input_ids": IDS})[0]


@pytest.mark.parametrize("way", WAYS)
def test_every_layer_of_a_converted_file(scripts: dict[str, ModuleType], converted: Path, way: str) -> None:
    output, (most, operators) = converted.with_name(f"{way}.onnx"), WAYS[way]
    getattr(scripts["quantise"], way)(converted, output)
    found = onnx.load(output)
    counts = Counter(node.op_type for node in found.graph.node)
    assert operators.items() <= counts.items()
    assert (
        sum(node.domain == "dynorm" for node in found.graph.node) == NORMS == len(scripts["quantised"].bounds(output))
    )
    assert 0 < relative_error(logits(output), logits(converted)) < most


@every_operator
def test_outputs_lie_within_the_bounds_and_reach_them(
    scripts: dict[str, ModuleType], op_type: str, tmp_path: Path
) -> None:
    node = Node(op_type)
    model = model_of(node, with_body=True)
    onnx.save(model, tmp_path / "model.onnx")
    ((ends,),) = scripts["quantised"].bounds(tmp_path / "model.onnx").values()
    rounding = TOLERANCE["float32"] * np.abs(list(ends.values())).max()
    for size in (1.0, 300.0):
        y = run_ort(model, {name: size * x for name, x in node.feeds(8, 40).items()})[0]
        assert ends["rmin"] - rounding <= y.min() and y.max() <= ends["rmax"] + rounding
    if not node.form.coupled:  # whose gain keeps the channels in the sum from the ends
        assert y.min() == pytest.approx(ends["rmin"], rel=1e-2) and y.max() == pytest.approx(ends["rmax"], rel=1e-2)

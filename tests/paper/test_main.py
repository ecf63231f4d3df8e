"""`python -m dynorm_onnx.paper`: tables, JSON, figures, and errors in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from dynorm_onnx.paper.__main__ import main

TWO_NORMS = """<ir_version: 8, opset_import: ["" : 18]>
two (float[batch, 6, 24] x, float[24] first_weight, float[24] second_weight) => (float[batch, 6, 24] y) {
    a = LayerNormalization<axis = -1, epsilon = 0.00001>(x, first_weight)
    b = Tanh(a)
    c = Add(x, b)
    y = LayerNormalization<axis = -1, epsilon = 0.00001>(c, second_weight)
}"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """--model and --data of a model with two LayerNorms."""
    folder = tmp_path_factory.mktemp("small")
    model = onnx.parser.parse_model(TWO_NORMS)
    rng = np.random.default_rng(0)
    for name in ("first_weight", "second_weight"):
        weight = rng.uniform(0.5, 2, 24).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
        del model.graph.input[1]
    for node, name in zip(
        (model.graph.node[0], model.graph.node[-1]), ("block.first_norm", "block.second_norm"), strict=True
    ):
        node.name = name
    onnx.save(model, folder / "two.onnx")
    np.savez(folder / "x.npz", x=rng.standard_t(3, (20, 6, 24)).astype(np.float32))
    return ["--model", str(folder / "two.onnx"), "--data", str(folder / "x.npz"), "--samples", "16"]


def test_the_table_has_the_papers_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for number in ("0.04861", "0.3279", "301.06", "0.004814", "295.7618", "Derf", "RMSNorm", "LayerNorm"):
        assert number in shown, number


def test_json_is_the_only_thing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    experiments = json.loads(capsys.readouterr().out)["experiments"]
    assert [experiment["norm"] for experiment in experiments] == ["layer", "rms"]
    fits = {fit["function"]: fit for fit in experiments[0]["fits"]}
    assert round(fits["dyisru"]["parameters"]["beta"], 2) == 301.06
    assert len(fits["dyt"]["gains"]) == 9 and len(experiments[0]["points"]["x"]) == 18


def test_a_model_gives_a_table_and_a_figure(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # as wide as where nothing says otherwise
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install dynorm-onnx[report]")
    figure = tmp_path / "model.svg"
    assert main([*small, "--coupled", "2", "--plot", str(figure)]) == 0
    shown = capsys.readouterr().out
    assert "block.second_norm" in shown and "one scalar, fitted to the outliers alone" in shown
    assert "behind the gain of channels that stay in the sum" in shown
    assert figure.read_text().startswith("<?xml") and figure.stat().st_size > 20_000


def test_a_model_gives_json(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*small, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [site["kind"] for site in told["sites"]] == ["layer", "layer"]
    assert told["source"] == "arrays x.npz"
    assert sum(told["wins"]["scalar"]["overall"].values()) == 2


def test_the_experiment_gives_a_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install dynorm-onnx[report]")
    figure = tmp_path / "paper.png"
    assert main(["--json", "--plot", str(figure)]) == 0
    assert figure.read_bytes()[:4] == b"\x89PNG" and figure.stat().st_size > 50_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "x.txt"], "--data x.txt needs --model"),
        (["--coupled", "4"], "--coupled 4 needs --model"),
        (["--model", "m.onnx", "--coupled", "-1"], "--coupled -1"),
        (["--model", "not_there.onnx"], "not_there.onnx"),
        (["--plot", "none/x.png"], "--plot none/x.png: nothing can be written in that folder"),
        (["--plot", "x.nonsense"], "--plot x.nonsense: cannot be written"),
    ],
)
def test_wrong_use_is_told_in_a_sentence(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert main(["--model", "not_there.onnx", "--plot", "x.png"]) == 2
    assert "pip install dynorm-onnx[report]" in capsys.readouterr().err

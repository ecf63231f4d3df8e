"""The command that exports one model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")
pytest.importorskip("transformers", reason="needs transformers: pip install transformers")

from dynorm_onnx.runtime.session import make_session
from models.zoo import export
from models.zoo.cell import ExporterError, reason, require_model
from models.zoo.subject import of_model, pretrained, tiny

Run = Callable[..., list[Path]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command with these arguments; the files that it names on stdout."""

    def command(*arguments: str | Path) -> list[Path]:
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        export.main()
        return [Path(line) for line in capsys.readouterr().out.splitlines() if line.startswith("/")]

    return command


def test_an_architecture_to_a_file(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "vit.onnx"
    assert run("vit", "--exporter", "torchscript", "--opset", "16", "-o", path) == [path]
    assert list(tmp_path.iterdir()) == [path]
    assert {entry.domain: entry.version for entry in onnx.load(path).opset_import}[""] == 16
    require_model([path], tiny("vit"), approximate=False)


def test_a_local_folder_and_an_optimiser(tmp_path: Path, run: Run) -> None:
    folder, path = tmp_path / "bert", tmp_path / "bert.onnx"
    tiny("bert").model.save_pretrained(folder)
    run(folder, "--exporter", "torchscript", "--then", "optimizer", "-o", path)
    assert any(node.op_type == "SkipLayerNormalization" for node in onnx.load(path).graph.node)
    require_model([path], pretrained(str(folder)), approximate=False)


def test_several_files_to_a_folder(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs the model builder: pip install onnxruntime-genai")
    files = run("whisper", "--exporter", "genai", "-o", tmp_path / "whisper")
    assert [path.name for path in files] == ["encoder.onnx", "decoder.onnx"]
    for path in files:
        make_session(path)


def test_a_name_that_is_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("lama", "-o", "lama.onnx")
    assert "'lama' is no architecture of the zoo" in capsys.readouterr().err


def test_another_model_is_no_export(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "gpt2.onnx"
    run("gpt2", "--exporter", "torchscript", "-o", path)
    other = tiny("gpt2")
    require_model([path], other, approximate=False)
    next(other.model.parameters()).data.mul_(1.5)
    with pytest.raises(ExporterError, match="differs from the PyTorch model by"):
        require_model([path], of_model("gpt2", other.model), approximate=False)


def test_reasons_are_short_and_come_from_the_root() -> None:
    try:
        try:
            raise KeyError("rope_type")
        except KeyError as error:
            raise RuntimeError("The export failed. " * 50) from error
    except RuntimeError as error:
        assert reason(error) == "KeyError: 'rope_type'"
    assert reason(ValueError("\x1b[96m/tmp/zoo-x1/source is wrong\x1b[0m\nsecond line")) == "source is wrong"

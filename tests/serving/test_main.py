"""python -m dynorm_onnx.serving: what it prints, where it writes, and what it leaves with."""

from __future__ import annotations

import importlib.util
import json
import runpy
from pathlib import Path

import pytest

from dynorm_onnx.serving.__main__ import main
from tests.shipped import FOLDER, MODEL, TEXT


def test_triton_and_kubernetes(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    models = tmp_path / "models"
    assert main(["triton", str(converted), "-o", str(models), "--name", "lm", "--max-batch-size", "4"]) == 0
    assert capsys.readouterr().out.strip() == str(models / "lm")
    assert "max_batch_size: 4" in (models / "lm" / "config.pbtxt").read_text()
    assert main(["kubernetes", str(models), "--name", "lm", "--replicas", "2", "5"]) == 0
    printed = capsys.readouterr().out
    assert (
        main(["kubernetes", str(models), "--name", "lm", "--replicas", "2", "5", "-o", str(tmp_path / "lm.yaml")]) == 0
    )
    assert (tmp_path / "lm.yaml").read_text() == printed
    assert "maxReplicas: 5" in printed and printed.count("---") == 2


def test_kserve_takes_the_same_options(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    models = tmp_path / "models"
    assert main(["triton", str(converted), "-o", str(models), "--name", "lm"]) == 0
    assert main(["kserve", str(models), "--name", "lm", "--replicas", "2", "5", "-o", str(tmp_path / "lm.yaml")]) == 0
    written = (tmp_path / "lm.yaml").read_text()
    assert "kind: InferenceService" in written and "maxReplicas: 5" in written
    capsys.readouterr()
    assert main(["kserve", str(models), "--scale-on", "queue_ms=5"]) == 2
    assert "KServe scales on cpu or memory, in percent" in capsys.readouterr().err


def test_ray(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    app = tmp_path / "app"
    asked = [
        "--name",
        "lm",
        "--replicas",
        "2",
        "5",
        "--listen",
        "127.0.0.1:8123",
        "--cpus",
        "2",
        "--max-batch-size",
        "4",
    ]
    assert main(["ray", str(converted), "-o", str(app), *asked]) == 0
    assert capsys.readouterr().out.strip() == str(app / "serve.yaml")
    written = (app / "serve.yaml").read_text()
    assert "port: 8123" in written and "max_replicas: 5" in written and "max_batch_size: 4" in written
    assert (app / "model.onnx").read_bytes() == converted.read_bytes()


def test_genai(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runpy.run_path(str(FOLDER / "genai.py"))["write"](tmp_path / "in")
    skipped = ["--no-validate", "--no-time", "--no-rotate"]
    quick = ["--samples", "8", "--max-length", "64", "--method", "fit", "--to", "dyt", *skipped]
    folders = [str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert main(["genai", *folders, "--data", str(TEXT), "--json", *quick]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["to"] == "dyt" and report["output"] == str(tmp_path / "out" / "model.onnx")
    assert [site["status"] for site in report["sites"]] == ["converted"] * 9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["triton", "gone.onnx", "-o", "OUT"], "gone.onnx: there is no such file"),
        (["triton", str(MODEL), "-o", "OUT", "--name", "a/b"], "--name 'a/b'"),
        (["genai", "OUT", "-o", "OUT"], "is no ONNX Runtime GenAI folder"),
        (["kubernetes", "OUT"], "is no model repository"),
        (["kubernetes", "OUT", "--scale-on", "cpu"], "--scale-on 'cpu'"),
        (["kserve", "OUT"], "is no model repository"),
        (["ray", "gone.onnx", "-o", "OUT"], "gone.onnx: there is no such file"),
        (["ray", str(MODEL), "-o", "OUT", "--host-folder", "app"], "--host-folder 'app' must be an absolute path"),
        (["ray", str(MODEL), "-o", "OUT", "--replicas", "3", "2"], "--replicas 3 2: there must be at least 1, and no"),
    ],
)
def test_errors_are_sentences(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err and "Traceback" not in captured.err and not captured.out
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize(("kind", "module"), [("triton", "tritonclient"), ("genai", "onnxruntime_genai")])
def test_a_missing_extra_is_named(kind: str, module: str, capsys: pytest.CaptureFixture) -> None:
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    assert main(["bench", kind, "x"]) == 2
    assert "pip install 'dynorm-onnx[serving]'" in capsys.readouterr().err


def test_no_server_is_a_sentence(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("tritonclient.grpc", reason="pip install 'dynorm-onnx[serving]'")
    for protocol in ("grpc", "http"):
        assert main(["bench", "triton", "x", "--protocol", protocol, "--url", "127.0.0.1:9"]) == 2
        assert "no Triton server answers at 127.0.0.1:9" in capsys.readouterr().err

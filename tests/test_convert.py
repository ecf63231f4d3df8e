"""The command line as a user meets it: output, exit codes, one clear sentence for every mistake."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from dynorm_onnx import convert_model
from dynorm_onnx.convert import main
from dynorm_onnx.report import Report
from tests.shipped import FOLDER, MODEL, NORMS, TEXT

QUICK = [
    "--data", str(TEXT), "--samples", "8", "--max-length", "48", "--method", "fit", "--no-time", "--no-rotate",
    "--optimize", "none",
]  # fmt: skip


def run(*arguments: object, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; stderr is no terminal."""
    command = [sys.executable, "-m", "dynorm_onnx.convert", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "120", "PYTHONIOENCODING": encoding}
    return subprocess.run(command, capture_output=True, encoding=encoding, timeout=300, env=environment)


def failure(*arguments: object, code: int = 2) -> str:
    """stderr of a command that must fail so, in this process: no traceback, nothing on stdout."""
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        assert main([*map(str, arguments), "-q"]) == code, told.getvalue()
    assert "Traceback" not in told.getvalue()
    assert not printed.getvalue()
    return told.getvalue()


def test_converts_beside_the_model_and_prints_a_summary(tmp_path: Path) -> None:
    model = tmp_path / "tiny.onnx"
    model.write_bytes(MODEL.read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((FOLDER / "tokenizer.json").read_bytes())
    done = run(model, *QUICK)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tiny.dyisru.onnx").exists()
    for part in (f"{NORMS} norms", "model.layers.0.input_layernorm", "KL to the original", "top-1 agreement"):
        assert part in done.stdout
    lines = done.stderr.splitlines()
    assert lines[0] == "find: begins" and "calibrate: begins" in lines and lines[-1].startswith("save: done in ")
    assert not run(MODEL, "--dry-run", "-q").stderr


def test_json_is_one_object_and_nothing_else(tmp_path: Path) -> None:
    done = run(MODEL, *QUICK, "-o", tmp_path / "out.onnx", "--json")
    report = json.loads(done.stdout)
    assert report["to"] == "dyisru" and report["method"] == "fit"
    assert [site["status"] for site in report["sites"]] == ["converted"] * NORMS
    assert set(report["sites"][0]) >= {"name", "kind", "form", "channels", "dtype", "status", "reason", "error"}
    assert report["calibration"]["tokens"] > 0 and report["calibration"]["samples"] <= 8
    assert 0 < report["validation"]["kl"]["mean"] < report["validation"]["kl"]["p99"]
    assert report["timing"] == [] and report["changed_initializers"] == []


def bracketed(path: Path) -> None:
    """The shipped model, its first layer's names as some exporters write them."""
    model = onnx.load(MODEL)
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("layers.0.", "layers[0].:smile:.")
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = name.replace("layers.0.", "layers[0].:smile:.")
    onnx.save(model, path)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_names_are_shown_as_they_are_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    bracketed(tmp_path / "λ[bold].onnx")
    data = ["--data", TEXT, "--tokenizer", FOLDER / "tokenizer.json", "--samples", 4, "--max-length", 16]
    knobs = [*data, "--to", "rmsnorm", "--no-time", "-o", tmp_path / "out[red].onnx"]
    done = run(tmp_path / "λ[bold].onnx", *knobs, encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    first = "λ[bold].onnx → rmsnorm" if encoding == "utf-8" else "?[bold].onnx -> rmsnorm"
    assert done.stdout.startswith(first)
    assert "model.layers[0].:smile:.input_layernorm" in done.stdout and "out[red].onnx" in done.stdout
    assert (tmp_path / "out[red].onnx").exists()


def test_what_cannot_be_told_is_not_written(tmp_path: Path) -> None:
    def fails(report: Report) -> None:
        raise RuntimeError("no paper")

    with pytest.raises(RuntimeError, match="no paper"):
        convert_model(MODEL, to="rmsnorm", output=tmp_path / "out.onnx", validate=False, time=False, ready=fails)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_usable_says_so_first(tmp_path: Path) -> None:
    data = [*QUICK, "--samples", 2, "--max-length", 8]
    done = run(MODEL, *data, "-o", tmp_path / "out.onnx")
    assert done.returncode == 0 and (tmp_path / "out.onnx").exists()
    assert done.stdout.startswith("this model is not usable: the next-token loss rises")
    assert "  try --method reconstruct" in done.stdout
    done = run(MODEL, *data, "-o", tmp_path / "out.onnx", "--json")
    assert json.loads(done.stdout)["verdict"]["usable"] is False
    assert "this model is not usable" in done.stderr


def test_a_dry_run_prints_the_sites(tmp_path: Path) -> None:
    done = run(MODEL, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.count("B3") == NORMS


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "no such file"), (b"", "not an ONNX model"), (b"hello\n", "not an ONNX model"), (b"\x00" * 50, "ONNX")],
    ids=["missing", "empty", "text", "zeros"],
)
def test_files_that_are_no_models(content: bytes | None, word: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    assert word in failure(path)


def test_a_failure_ends_the_process_with_its_code_and_a_sentence(tmp_path: Path) -> None:
    done = run(tmp_path / "missing.onnx", "-q")
    assert done.returncode == 2 and not done.stdout
    assert "no such file" in done.stderr and "Traceback" not in done.stderr


def test_a_truncated_model(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(MODEL.read_bytes()[:100_000])
    assert "cut.onnx" in failure(path)


def test_missing_external_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "external.onnx"
    onnx.save(onnx.load(MODEL), path, save_as_external_data=True, location="weights.bin")
    (tmp_path / "weights.bin").unlink()
    assert "weights.bin" in failure(path, *QUICK, "--tokenizer", FOLDER / "tokenizer.json")


def test_no_norm_has_its_own_exit_code(tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"
    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), path)
    assert "no norm" in failure(path, code=3)


def test_a_bound_that_is_not_met_has_its_own_exit_code(tmp_path: Path) -> None:
    message = failure(MODEL, *QUICK, "--only", "model.norm", "--max-kl", "1e-9", "-o", tmp_path / "out.onnx", code=4)
    assert "--max-kl" in message
    assert not list(tmp_path.iterdir())


def test_patterns_that_match_nothing_or_are_none() -> None:
    assert "'*layers.9*'" in failure(MODEL, "--keep", "*layers.9*", "--dry-run")
    assert "regular expression" in failure(MODEL, "--only", "re:(", "--dry-run")


def test_the_input_is_never_written_over(tmp_path: Path) -> None:
    model = tmp_path / "tiny.onnx"
    model.write_bytes(MODEL.read_bytes())
    message = failure(model, *QUICK, "--tokenizer", FOLDER / "tokenizer.json", "-o", model)
    assert "tiny.onnx" in message
    assert model.read_bytes() == MODEL.read_bytes()


def test_an_output_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "nowhere" in failure(MODEL, *QUICK, "-o", tmp_path / "nowhere" / "out.onnx")


def test_data_that_does_not_fit(tmp_path: Path) -> None:
    wrong_name, wrong_type = (tmp_path / f"{name}.npz" for name in ("name", "type"))
    np.savez(wrong_name, tokens=np.zeros((4, 8), np.int64))
    np.savez(wrong_type, input_ids=np.zeros((4, 8), np.float32))
    assert "input_ids" in failure(MODEL, "--data", wrong_name)
    message = failure(MODEL, "--data", wrong_type)
    assert "input_ids" in message and "float32" in message and "int64" in message
    assert "nothing.txt" in failure(MODEL, "--data", tmp_path / "nothing.txt")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--samples", "0"], "--samples"),
        (["--max-kl", "-1"], "--max-kl"),
        (["--max-kl", "1", "--no-validate"], "--max-kl"),
    ],
    ids=["samples", "negative-bound", "bound-without-validation"],
)
def test_knobs_that_make_no_sense(arguments: list[str], word: str) -> None:
    assert word in failure(MODEL, *arguments)

"""Folders of models with operators of a library of the user's own: it goes along, and the server registers it."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from dynorm_onnx.errors import UsageError
from dynorm_onnx.runtime.session import make_session
from dynorm_onnx.serving.genai import convert_genai_folder
from dynorm_onnx.serving.ray_serve import write_ray_application
from dynorm_onnx.serving.triton import write_triton_model
from tests.custom_ops.twice import SAMPLES, build, write_model
from tests.serving.test_ray_serve import read
from tests.serving.test_triton import parsed
from tests.shipped import FOLDER, TEXT

QUICK: dict[str, Any] = {
    "samples": 4,
    "max_length": 32,
    "method": "fit",
    "validate": False,
    "time": False,
    "rotate": False,
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("theirs"))


@pytest.fixture(scope="module")
def genai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as a GenAI folder, its logits doubled twice over by an operator of the library."""
    folder = tmp_path_factory.mktemp("genai") / "original"
    runpy.run_path(str(FOLDER / "genai.py"))["write"](folder)
    decoder = onnx.load(folder / "model.onnx")
    last = next(node for node in decoder.graph.node if "logits" in node.output)
    last.output[0] = "halved"
    decoder.graph.node.add(domain="theirs", op_type="Twice", input=["halved"], output=["logits"])
    decoder.opset_import.add(domain="theirs", version=1)
    onnx.save(decoder, folder / "model.onnx")
    return folder


def decoder_options(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "genai_config.json").read_text())
    options: dict[str, Any] = config["model"]["decoder"]["session_options"]
    return options


def test_a_triton_model_takes_its_library_along(library: Path, tmp_path: Path) -> None:
    folder = write_triton_model(write_model(tmp_path), tmp_path, "lm", custom_op_library=[library])
    assert list(parsed(folder).model_operations.op_library_filename) == ["/models/lm/1/libtwice.so"]
    assert (folder / "1" / "libtwice.so").read_bytes() == library.read_bytes()


def test_a_ray_application_takes_its_library_along(library: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path)
    config = write_ray_application(model, tmp_path / "app", custom_op_library=[library])
    arguments = read(config)["applications"][0]["args"]
    assert arguments["custom_op_libraries"] == [str(tmp_path / "app" / "libtwice.so")]
    opened = make_session(arguments["model"], custom_op_libraries=arguments["custom_op_libraries"])
    by_hand = make_session(model, custom_op_libraries=[library])
    assert np.array_equal(opened.run(None, SAMPLES)[0], by_hand.run(None, SAMPLES)[0])


def test_the_python_backend_registers_it(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that is copied for the server, with what the server itself provides of its module."""
    model = write_model(tmp_path)
    folder = write_triton_model(model, tmp_path, "lm", backend="python", custom_op_library=[library])
    said: list[str] = []
    monkeypatch.setitem(
        sys.modules, "triton_python_backend_utils", SimpleNamespace(Logger=SimpleNamespace(log_info=said.append))
    )
    program = runpy.run_path(str(folder / "1" / "model.py"))
    parameters = {"provider": "cpu", "threads": "1", "custom_op_libraries": json.dumps(["libtwice.so"])}
    assert (
        f"value {{ string_value: {json.dumps(parameters['custom_op_libraries'])} }}"
        in (folder / "config.pbtxt").read_text()
    )
    feeds = {"x": SAMPLES["x"][:1]}
    by_us = program["_open"](folder / "1", parameters, 0).run(None, feeds)[0]
    plain = program["_open"](folder / "1", parameters, 1).run(None, feeds)[0]
    assert [line.rpartition(" ")[2] for line in said] == ["dynorm_onnx", "Runtime"]
    np.testing.assert_array_equal(by_us, plain)


def test_two_files_of_one_name(library: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / library.name
    other.write_bytes(library.read_bytes())
    with pytest.raises(UsageError, match=r"another file of the folder is called libtwice.so too"):
        write_triton_model(write_model(tmp_path), tmp_path, "lm", custom_op_library=[library, other])
    assert not (tmp_path / "lm").exists()


def test_a_genai_folder_names_it(genai: Path, library: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    convert_genai_folder(genai, tmp_path / "out", data=TEXT, custom_op_library=library, **QUICK)
    assert decoder_options(tmp_path / "out")["custom_ops_library"] == "libtwice.so"
    assert (tmp_path / "out" / "libtwice.so").read_bytes() == library.read_bytes()
    assert "can name one library, and that is libtwice.so" in caplog.text


def test_a_genai_folder_that_names_one_is_converted_with_it(genai: Path, library: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(genai, tmp_path / "named")
    shutil.copyfile(library, folder / library.name)
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"] = {"custom_ops_library": library.name}
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"can name only one library, and these are libtwice.so, "):
        convert_genai_folder(folder, tmp_path / "out", data=TEXT, custom_op_library=library, **QUICK)
    convert_genai_folder(folder, tmp_path / "out", data=TEXT, library=False, **QUICK)
    assert decoder_options(tmp_path / "out")["custom_ops_library"] == "libtwice.so"
    assert (tmp_path / "out" / "libtwice.so").is_file()

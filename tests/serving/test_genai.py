"""ONNX Runtime GenAI folders: the converted folder generates what a loop over the session generates."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dynorm_onnx import custom_ops
from dynorm_onnx.calibration.data.missing import complete
from dynorm_onnx.calibration.data.signature import signature
from dynorm_onnx.errors import DataError, ModelError, UsageError
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import make_session
from dynorm_onnx.serving.genai import convert_genai_folder
from dynorm_onnx.serving.speed import generate, measure_speed
from tests.serving.greedy import Decoder
from tests.shipped import FOLDER, MODEL, TEXT
from tests.tolerances import relative_error

needs_genai = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_genai") is None,
    reason="onnxruntime-genai is not installed: pip install 'dynorm-onnx[serving]'",
)
QUICK: dict[str, Any] = {
    "samples": 8,
    "max_length": 64,
    "method": "fit",
    "validate": False,
    "time": False,
    "rotate": False,
}
PROMPT = b"def main():\n"
COUNT = 40


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as a GenAI folder, with a file that has nothing to do with it."""
    folder = tmp_path_factory.mktemp("genai") / "original"
    runpy.run_path(str(FOLDER / "genai.py"))["write"](folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture(scope="module")
def with_library(original: Path) -> Path:
    folder = original.with_name("with_library")
    convert_genai_folder(original, folder, data=TEXT, **QUICK)
    return folder


@pytest.fixture(scope="module")
def without_library(original: Path) -> Path:
    folder = original.with_name("without_library")
    convert_genai_folder(original, folder, data=TEXT, library=False, **QUICK)
    return folder


def looped(model: Path, *, kernels: bool | None, count: int = COUNT) -> list[int]:
    """Greedy generation by running a session once for each token, with its cache."""
    return Decoder(model, kernels=kernels).continued(PROMPT, count)


def test_the_folder_of_the_shipped_model_is_the_shipped_model(original: Path) -> None:
    ids = np.frombuffer(TEXT.read_bytes()[:96], np.uint8).astype(np.int64)[None]
    whole = make_session(MODEL, kernels=False).run(["logits"], {"input_ids": ids})[0]
    decoder = original / "model.onnx"
    feeds = complete({"input_ids": ids}, signature(model_io.load(decoder)), np.random.default_rng(0))
    cached = run(make_session(decoder, kernels=False), feeds)["logits"]
    assert relative_error(cached, whole) < 1e-5  # another attention kernel, eight matrices deep


@needs_genai
def test_the_original_folder_generates_as_the_loop(original: Path) -> None:
    assert generate(original, PROMPT, COUNT) == looped(original / "model.onnx", kernels=False)


@needs_genai
@pytest.mark.parametrize("library", [True, False])
def test_the_converted_folder_generates_as_the_loop(with_library: Path, without_library: Path, library: bool) -> None:
    if library and custom_ops.library_path() is None:
        pytest.skip("the custom-op library is not built here")
    folder = with_library if library else without_library
    tokens = generate(folder, PROMPT, COUNT)
    assert len(tokens) == COUNT
    assert tokens == looped(folder / "model.onnx", kernels=library)


def test_every_norm_is_a_node_of_ours(with_library: Path) -> None:
    operators = [node.op_type for node in onnx.load(with_library / "model.onnx").graph.node]
    assert operators.count("DyISRU") + operators.count("SkipDyISRU") == 9
    assert "SkipSimplifiedLayerNormalization" not in operators and operators.count("GroupQueryAttention") == 4


@needs_genai
def test_a_moved_folder_still_finds_its_library(with_library: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(with_library, tmp_path / "elsewhere"))
    assert generate(moved, PROMPT, 8) == generate(with_library, PROMPT, 8)


def test_config_and_files(original: Path, with_library: Path, without_library: Path) -> None:
    before, after, plain = (
        json.loads((folder / "genai_config.json").read_text()) for folder in (original, with_library, without_library)
    )
    assert plain == before
    if custom_ops.library_path() is not None:
        assert after["model"]["decoder"]["session_options"].pop("custom_ops_library") == "libdynorm_ops.so"
        assert (with_library / "libdynorm_ops.so").read_bytes() == custom_ops.library_path().read_bytes()
    assert after == before
    names = {path.name for path in original.iterdir()}
    assert {path.name for path in without_library.iterdir()} == names
    for name in names - {"model.onnx", "genai_config.json"}:
        assert (with_library / name).read_bytes() == (original / name).read_bytes()


def test_a_decoder_in_standard_operators_needs_no_library(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "inlined"
    report = convert_genai_folder(original, folder, data=TEXT, inline=True, **QUICK)
    decoder = onnx.load(folder / "model.onnx", load_external_data=False)
    assert not decoder.functions and "dynorm" not in {entry.domain for entry in decoder.opset_import}
    assert not list(folder.glob("*.so")) and "custom_ops_library" not in (folder / "genai_config.json").read_text()
    (warning,) = (warning for warning in report.warnings if warning.startswith("--inline"))
    assert warning.endswith("com.microsoft.GroupQueryAttention")


def test_external_weights_are_written_anew_and_those_of_others_kept(original: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(original, tmp_path / "source"))
    decoder = onnx.load(source / "model.onnx")
    (source / "model.onnx").unlink()
    onnx.save(decoder, source / "model.onnx", save_as_external_data=True, location="decoder.weights")
    onnx.save(onnx.load(MODEL), source / "vision.onnx", save_as_external_data=True, location="vision.weights")
    target = tmp_path / "target"
    convert_genai_folder(source, target, data=TEXT, **QUICK)
    names = {path.name for path in target.iterdir()}
    assert "decoder.weights" not in names
    assert {"model.onnx", "model.onnx.data", "vision.onnx", "vision.weights"} <= names
    assert len(looped(target / "model.onnx", kernels=None, count=3)) == 3


def test_a_folder_writes_its_own_text_where_no_data_is_given(original: Path, tmp_path: Path) -> None:
    report = convert_genai_folder(original, tmp_path / "out", **QUICK)
    assert report.calibration is not None and "wrote" in report.calibration.source
    assert report.output == tmp_path / "out" / "model.onnx"


def edited(original: Path, folder: Path, change: dict[str, Any]) -> Path:
    """The folder with other entries in the decoder of its genai_config.json."""
    shutil.copytree(original, folder)
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"] |= change
    (folder / "genai_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"filename": "gone.onnx"}, ModelError, "gone.onnx: there is no such file"),
        ({"filename": None}, ModelError, "names no model.decoder.filename"),
        ({"filename": "../original/model.onnx"}, ModelError, "lies outside the folder"),
        ({"pipeline": [{"a": {"filename": "a.onnx"}}]}, ModelError, "a pipeline of several models"),
        ({"session_options": {"custom_ops_library": "x.so"}}, UsageError, "names the library 'x.so' already"),
    ],
)
def test_folders_that_cannot_be_converted(
    original: Path, change: dict[str, Any], error: type[Exception], message: str, request: pytest.FixtureRequest
) -> None:
    folder = edited(original, original.with_name(f"edited-{abs(hash(message))}"), change)
    target = folder.with_suffix(".out")
    with pytest.raises(error, match=message):
        convert_genai_folder(folder, target, **QUICK)
    assert not target.exists()


def test_nothing_is_written_over_nor_left_half(original: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no ONNX Runtime GenAI folder"):
        convert_genai_folder(tmp_path, tmp_path / "out", **QUICK)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(UsageError, match="is there already"):
        convert_genai_folder(original, tmp_path / "there", **QUICK)
    with pytest.raises(UsageError, match="--samples must be at least 2"):
        convert_genai_folder(original, tmp_path / "out", **(QUICK | {"samples": 1}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_a_library_without_the_provider_is_left_out(
    original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"session_options": {"provider_options": [{"OpenVINO": {}}]}}
    folder = edited(original, tmp_path / "source", options)
    convert_genai_folder(folder, tmp_path / "out", data=TEXT, **QUICK)
    assert not (tmp_path / "out" / "libdynorm_ops.so").exists()
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert config["model"]["decoder"]["session_options"] == options["session_options"]
    if custom_ops.library_path() is not None:
        assert "has no kernels for openvino" in caplog.text


@needs_genai
def test_speed_is_measured_in_turn(original: Path, with_library: Path) -> None:
    rows = measure_speed([original, with_library], PROMPT.decode(), tokens=16, runs=3)
    assert [row.folder for row in rows] == [str(original), str(with_library)]
    for row in rows:
        assert (row.prompt, row.generated, row.runs) == (len(PROMPT), 16, 3)
        assert 0 < row.per_second_p10 <= row.per_second <= row.per_second_p90 and row.prompt_ms > 0
    with pytest.raises(ModelError, match="onnxruntime-genai cannot load"):
        measure_speed([original.parent], "x")


@needs_genai
@pytest.mark.parametrize(
    ("prompt", "count", "error", "said"),
    [
        ([], 4, DataError, "the prompt is empty"),
        ([65, 256], 4, DataError, r"256 in the prompt is no token: they lie in 0\.\.255"),
        ([65, -1], 4, DataError, "-1 in the prompt is no token"),
        ([65, 66.5], 4, DataError, "66.5 in the prompt is no token"),
        ([65] * 2040, 9, DataError, "a prompt of 2040 tokens and 9 more are longer than its context, 2048"),
        ([65], 0, UsageError, "tokens to generate must be at least 1, not 0"),
    ],
    ids=["empty", "beyond", "negative", "fraction", "long", "none"],
)
def test_prompts_that_make_no_sense_are_named(
    with_library: Path, prompt: list[Any], count: int, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        generate(with_library, prompt, count)


@needs_genai
def test_what_genai_itself_raises_is_a_sentence(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "claims"))
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["vocab_size"] = 300  # and the decoder has logits for 256
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"onnxruntime-genai cannot generate with .*claims: .*logits"):
        generate(folder, PROMPT, 4)

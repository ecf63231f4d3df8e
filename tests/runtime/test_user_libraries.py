"""Models with operators of a library of the user's own: registered wherever a session is made."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dynorm_onnx import convert_model, custom_ops, session
from dynorm_onnx.bench.__main__ import main as bench
from dynorm_onnx.convert import main as convert
from dynorm_onnx.errors import ModelError, UsageError
from dynorm_onnx.paper.__main__ import main as paper
from dynorm_onnx.runtime.session import has_kernels, make_session
from dynorm_onnx.runtime.user_libraries import registered
from tests.custom_ops.twice import SAMPLES, build, write_model
from tests.tolerances import TOLERANCE, relative_error

FEEDS = {"x": SAMPLES["x"][:2]}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("theirs"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, **SAMPLES)
    return path


@pytest.fixture(scope="module")
def converted(library: Path, model: Path, data: Path) -> Path:
    """By the command: found, calibrated, validated and timed."""
    output = model.with_name("out.onnx")
    arguments = [model, "--data", data, "--custom-op-library", library, "-o", output, "-q", "--json"]
    logger = logging.getLogger("dynorm_onnx")
    level = logger.level
    assert convert([*map(str, arguments)]) == 0
    logger.setLevel(level)  # as conftest.py does around each test, but not around what tests share
    return output


def test_a_conversion_with_all_its_steps(converted: Path, library: Path, model: Path) -> None:
    assert [node.op_type for node in onnx.load(converted).graph.node] == ["Twice", "DyISRU", "MatMul", "Twice"]
    found = session(converted, custom_op_libraries=[library]).run(None, FEEDS)[0]
    plain = make_session(converted, kernels=False, custom_op_libraries=[str(library)]).run(None, FEEDS)[0]
    assert relative_error(found, plain) < TOLERANCE["float32"]
    original = make_session(model, custom_op_libraries=[library]).run(None, FEEDS)[0]
    assert relative_error(found, original) < 1  # eight channels of noise are no function of one


def test_the_report_of_a_conversion_from_python(library: Path, model: Path, tmp_path: Path) -> None:
    report = convert_model(
        model, data=SAMPLES, custom_op_library=library, inline=True, method="fit", output=tmp_path / "out.onnx"
    )
    assert [row.variant for row in report.timing] == ["original", "original-fused", "converted"]
    assert report.validation is not None and report.validation.largest_error < 1
    assert [warning for warning in report.warnings if "--inline" in warning and warning.endswith("theirs.Twice")]


def test_without_it_the_message_says_what_to_do(model: Path) -> None:
    with pytest.raises(ModelError, match=r"Twice.*register its library: --custom-op-library"):
        convert_model(model, data=SAMPLES)


def test_a_block_registers_and_ends(library: Path, model: Path) -> None:
    with registered([library]), registered([library, library]):
        assert make_session(ir.load(model)).run(None, FEEDS)[0].shape == FEEDS["x"].shape
    with pytest.raises(ModelError, match="theirs"):
        make_session(model)


def test_our_own_library_may_be_named_too(library: Path, converted: Path) -> None:
    if not has_kernels("cpu"):
        pytest.skip("needs the custom-op library: pip install .")
    ours = custom_ops.library_path()
    assert ours is not None
    with registered([library, ours]):
        make_session(converted)


def test_a_file_that_is_not_there_or_no_library(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing, text = tmp_path / "none.so", tmp_path / "text.so"
    text.write_text("no library")
    for file, says in ((nothing, "there is no such file"), (text, "ONNX Runtime cannot load it: ")):
        assert convert([*map(str, (model, "--data", data, "--custom-op-library", file, "-q"))]) == 2
        said = capsys.readouterr().err
        assert f"--custom-op-library {file}: {says}" in said.replace("\n", "")
    with pytest.raises(UsageError, match="there is no such file"):
        session(model, custom_op_libraries=[nothing])


def test_the_other_commands(
    library: Path, model: Path, data: Path, converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--quick", "--seconds", "0.01", "--threads", "1", "--json"]
    assert bench(["model", *map(str, (model, "--converted", converted, "--custom-op-library", library)), *quick]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["variant"] for row in rows} >= {"original", "converted"}
    assert paper([*map(str, ("--model", model, "--data", data, "--custom-op-library", library, "--json"))]) == 0
    assert "site" in capsys.readouterr().out

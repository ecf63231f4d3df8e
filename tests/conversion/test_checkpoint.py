"""A calibration that is killed goes on where it was, to the bytes of one that was not."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dynorm_onnx import convert_model
from dynorm_onnx.calibration.norms import calibrate
from dynorm_onnx.convert import main
from dynorm_onnx.errors import BoundError, UsageError
from tests.calibration.rotation import planted as in_a_bad_basis
from tests.graph.fold.models import VOCABULARY, pre_norm
from tests.shipped import FOLDER, MODEL, TEXT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are copied: not on Windows")
NORMS = 5
QUICK = {"rotate": False, "optimize": "none", "time": False, "validate": False}
FEEDS = [{"ids": np.random.default_rng(seed).integers(0, VOCABULARY, (2, 5))} for seed in range(20)]
SMALL = {**QUICK, "data": FEEDS, "samples": 12}
SHIPPED = {**QUICK, "data": TEXT, "tokenizer": FOLDER / "tokenizer.json", "samples": 6, "max_length": 32}


def killed(model: Path, output: Path, step: str, done: int, **knobs: Any) -> Path:
    """Kills a conversion in the middle of a step; the checkpoint that it leaves, which is the default one."""
    child = os.fork()
    if child == 0:

        def progress(now: str, so_far: int, total: int) -> None:
            if (now, so_far) == (step, done):
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            convert_model(model, output=output, progress=progress, **knobs)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert not output.exists()
    return output.with_name(f"{output.name}.calibration")


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of NORMS norms; not to be written to."""
    path = tmp_path_factory.mktemp("small") / "model.onnx"
    onnx.save(pre_norm(blocks=NORMS - 1), path)
    return path


@pytest.mark.parametrize("method", ["fit", "reconstruct"])
def test_a_killed_run_goes_on_to_the_same_bytes(
    method: str, small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, uncut, done, knobs = tmp_path / "out.onnx", tmp_path / "uncut.onnx", 4, {**SMALL, "method": method}
    report = convert_model(small, output=uncut, **knobs)
    assert report.calibration is not None and report.calibration.resumed == 0
    assert names_in(tmp_path) == {"uncut.onnx"}, "nothing of the checkpoint stays"
    checkpoint = killed(small, output, "calibrate", done, **knobs)
    assert checkpoint.is_dir() and names_in(tmp_path) == {"uncut.onnx", checkpoint.name}
    (checkpoint / f"{0:032x}.npz.partial").write_bytes(b"what a killed run was writing")
    caplog.set_level(logging.INFO, "dynorm_onnx")
    report = convert_model(small, output=output, **knobs)
    assert output.read_bytes() == uncut.read_bytes()
    assert report.calibration is not None and report.calibration.resumed == done + 1  # the look at the original too
    assert f"goes on from {checkpoint}" in caplog.text
    fitted = [record for record in caplog.records if record.name.endswith("fit_rows")]
    assert 0 < len(fitted) < NORMS
    assert names_in(tmp_path) == {"uncut.onnx", "out.onnx"}


def test_the_end_of_a_model_is_not_fitted_again(tmp_path: Path) -> None:
    """Killed while it is written: nothing is left to solve. A damaged record is solved anew."""
    uncut, output, copy, knobs = tmp_path / "uncut", tmp_path / "out", tmp_path / "copy", SHIPPED
    convert_model(MODEL, output=uncut, **knobs)
    checkpoint = killed(MODEL, output, "save", 0, **knobs)
    records = sorted(checkpoint.glob("*.npz"), key=lambda file: file.stat().st_size)
    damaged = shutil.copytree(checkpoint, tmp_path / "copy.calibration") / records[-1].name
    damaged.write_bytes(damaged.read_bytes()[:-30] + bytes(30))
    steps: list[tuple[str, int, int]] = []
    report = convert_model(
        MODEL, output=output, progress=lambda *told: steps.append(told), checkpoint=checkpoint, **knobs
    )
    assert output.read_bytes() == uncut.read_bytes()
    assert report.calibration is not None and report.calibration.resumed == len(records)
    assert sum(step == "calibrate" and total > 0 for step, _, total in steps) == 2, "all at once, and the step's end"
    report = convert_model(MODEL, output=copy, **knobs)
    assert copy.read_bytes() == uncut.read_bytes()
    assert report.calibration is not None and report.calibration.resumed == len(records) - 1


def test_a_rotation_that_was_found_is_not_sought_again(tmp_path: Path) -> None:
    model, knobs = tmp_path / "model.onnx", {"data": in_a_bad_basis.samples(), "time": False}
    onnx.save(in_a_bad_basis.model(), model)
    convert_model(model, output=tmp_path / "uncut.onnx", **knobs)
    output = tmp_path / "out.onnx"
    killed(model, output, "calibrate", 1, **knobs)
    steps: list[tuple[str, int, int]] = []
    report = convert_model(model, output=output, progress=lambda *told: steps.append(told), **knobs)
    assert output.read_bytes() == (tmp_path / "uncut.onnx").read_bytes()
    assert len(report.rotations.done) == 1
    assert [told for told in steps if told[0] == "rotate"] == [("rotate", 0, 0), ("rotate", 1, 1)]


def test_text_that_the_model_wrote_is_not_written_again(tmp_path: Path) -> None:
    knobs = {**SHIPPED, "data": None, "method": "fit", "samples": 2, "max_length": 8}
    convert_model(MODEL, output=tmp_path / "uncut.onnx", **knobs)
    output = tmp_path / "out.onnx"
    killed(MODEL, output, "look", 0, **knobs)
    steps: list[tuple[str, int, int]] = []
    report = convert_model(MODEL, output=output, progress=lambda *told: steps.append(told), **knobs)
    assert output.read_bytes() == (tmp_path / "uncut.onnx").read_bytes()
    assert report.calibration is not None and report.calibration.resumed == 1
    assert [told for told in steps if told[0] == "data"] == [("data", 0, 0), ("data", 1, 1)]


def test_a_bound_that_is_searched_for_goes_on(small: Path, tmp_path: Path) -> None:
    """Every trial of it has results of its own."""
    knobs = {**SMALL, "method": "fit", "validate": True, "max_error": 0.15}
    first = convert_model(small, output=tmp_path / "uncut.onnx", **knobs)
    assert first.with_status("kept")
    output = tmp_path / "out.onnx"
    killed(small, output, "costs", NORMS, **knobs)
    report = convert_model(small, output=output, **knobs)
    assert output.read_bytes() == (tmp_path / "uncut.onnx").read_bytes()
    assert report.calibration is not None and report.calibration.resumed == NORMS + 1


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"coupled": 2}, "coupled was None"), ({"method": "reconstruct"}, "method was 'fit'"),
     ({"data": FEEDS[1:]}, "data was another")],
)  # fmt: skip
def test_another_runs_results_are_not_used(
    changed: dict[str, Any], told: str, small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They give way where nobody has named the checkpoint, and are refused where somebody has."""
    output, before = tmp_path / "out.onnx", {**SMALL, "method": "fit"}
    checkpoint, now = killed(small, output, "calibrate", 3, **before), {**before, **changed}
    with pytest.raises(UsageError, match=f"is the checkpoint of another run .{told}.*delete it, or name another"):
        convert_model(small, output=output, checkpoint=checkpoint, **now)
    report = convert_model(small, output=output, **now)
    assert f"is the checkpoint of another run ({told}" in caplog.text and "begins anew" in caplog.text
    assert report.calibration is not None and report.calibration.resumed == 0
    assert not checkpoint.exists()


def test_another_model_is_another_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also where only its weights differ."""
    model, output = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(pre_norm(), model, save_as_external_data=True, location="weights", size_threshold=0)
    killed(model, output, "calibrate", 2, **SMALL)
    with (tmp_path / "weights").open("r+b") as file:
        file.write(np.zeros(16, np.float32).tobytes())
    report = convert_model(model, output=output, **SMALL)
    assert "another run (model was another)" in caplog.text
    assert report.calibration is not None and report.calibration.resumed == 0


def test_a_run_that_ends_by_itself_leaves_nothing(small: Path, tmp_path: Path) -> None:
    with pytest.raises(BoundError):
        convert_model(
            small, output=tmp_path / "out.onnx", **{**SMALL, "validate": True, "only": ["final"]}, max_error=1e-9
        )
    assert not names_in(tmp_path)


def test_an_interrupted_command_says_what_goes_on(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle, and the same command again."""
    command = [str(small), "-o", str(tmp_path / "out.onnx"), "--data", "random", "--samples", "4", "--method",
               "fit", "--no-time", "--no-validate"]  # fmt: skip
    fit_norm, done = calibrate.fit_norm, []

    def interrupted(*arguments: Any) -> Any:
        done.append(arguments)
        if len(done) == 4:
            raise KeyboardInterrupt
        return fit_norm(*arguments)

    monkeypatch.setattr(calibrate, "fit_norm", interrupted)
    assert main(command) == 130
    assert f"the same command goes on from {tmp_path / 'out.onnx.calibration'}" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calibration"]["resumed"] == 3 + 2  # the look, and a rotation

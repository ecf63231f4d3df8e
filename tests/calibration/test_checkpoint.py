"""Records of a calibration: what goes in comes out, and nothing of anybody else is used, harmed or lost."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dynorm_onnx.calibration.checkpoint import Checkpoint, digest_of
from dynorm_onnx.errors import UsageError

RUN = {"model": "abc", "samples": 4}


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, np.int64, np.uint8, np.bool_, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_what_goes_in_comes_out(dtype: type, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.ones(shape, dtype)
    tree = {"array": array, "parts": [1, None, "x", [0.1, float("nan")]], "state": {"state": 2**127 + 1}}
    with Checkpoint(tmp_path / "run", RUN) as checkpoint:
        checkpoint.put("a name / of any kind", tree)
    with Checkpoint(tmp_path / "run", RUN) as checkpoint:
        found = checkpoint.get("a name / of any kind")
        assert checkpoint.get("another") is None
        assert checkpoint.reused == 1
    assert found["array"].dtype == array.dtype and np.array_equal(found["array"], array)
    assert found["array"].shape == shape and found["array"].flags.writeable
    assert found["parts"][:3] == [1, None, "x"] and found["parts"][3][0] == 0.1 and np.isnan(found["parts"][3][1])
    assert found["state"] == {"state": 2**127 + 1}


def test_transposed_arrays_are_what_they_were(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3).T
    with Checkpoint(tmp_path / "run", RUN) as checkpoint:
        checkpoint.put("transposed", {"array": array})
        assert np.array_equal(checkpoint.get("transposed")["array"], array)


def test_without_a_folder_nothing_is_kept() -> None:
    checkpoint = Checkpoint()
    checkpoint.put("name", {"number": 1})
    assert checkpoint.get("name") is None and not checkpoint.has("name")
    assert checkpoint.once("name", lambda: {"number": 2}) == {"number": 2}


def test_nothing_is_made_before_there_is_something_to_keep(tmp_path: Path) -> None:
    with Checkpoint(tmp_path / "run", RUN):
        assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.txt").touch()
    with pytest.raises(UsageError, match="is no checkpoint of a calibration: delete it, or name another folder"):
        Checkpoint(folder, RUN)
    with pytest.raises(UsageError, match="is no checkpoint of a calibration: delete it"):
        Checkpoint(folder / "thesis.txt", RUN)
    for arguments in ("no JSON", '{"model": "abc", "samples": 4}', "[]"):
        (folder / "arguments.json").write_text(arguments)
        with pytest.raises(UsageError, match="is no checkpoint of a calibration"):
            Checkpoint(folder, RUN)
    data = tmp_path / "data"
    data.mkdir()
    np.savez(data / "samples.npz", ids=np.zeros(3))
    with pytest.raises(UsageError, match="is no checkpoint of a calibration"):
        Checkpoint(data, RUN)
    assert {file.name for file in folder.iterdir()} == {"thesis.txt", "arguments.json"}


def test_what_somebody_has_put_beside_the_records_stays(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Checkpoint(folder, RUN) as checkpoint:
        checkpoint.put("name", {"number": 1})
    (folder / "thesis.npz").touch()
    with Checkpoint(folder, {**RUN, "samples": 5}) as checkpoint:
        assert checkpoint.get("name") is None
        checkpoint.put("name", {"number": 2})
        checkpoint.remove()
    assert [file.name for file in folder.iterdir()] == ["thesis.npz"]


def test_a_run_that_was_killed_at_once_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "arguments.json.partial").write_text("{")
    with Checkpoint(tmp_path / "run", RUN, named=True) as checkpoint:
        checkpoint.put("name", {"number": 1})
        assert checkpoint.get("name") == {"number": 1}
        checkpoint.remove()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_refused_where_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: its folder is not there"):
        Checkpoint(tmp_path / "missing" / "run", RUN, named=True)
    checkpoint = Checkpoint(tmp_path / "missing" / "run", RUN)
    checkpoint.put("name", {"number": 1})
    assert checkpoint.get("name") is None


@pytest.mark.skipif(os.name == "nt", reason="nothing is locked on Windows")
def test_two_runs_at_once_do_not_share_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Checkpoint(tmp_path / "run", RUN) as first:
        first.put("name", {"number": 1})
        with Checkpoint(tmp_path / "run", {**RUN, "samples": 5}) as second:
            second.put("name", {"number": 2})
            second.remove()
        assert first.get("name") == {"number": 1}
    assert "is another run's, which is not over" in caplog.text


def test_a_record_of_other_arguments_is_not_read(tmp_path: Path) -> None:
    """Even where one got into the folder."""
    with Checkpoint(tmp_path / "run", RUN) as checkpoint:
        checkpoint.put("name", {"number": 1})
    (record,) = (tmp_path / "run").glob("*.npz")
    content = record.read_bytes()
    with Checkpoint(tmp_path / "run", {**RUN, "samples": 5}) as checkpoint:
        record.write_bytes(content)
        assert checkpoint.get("name") is None


def test_arguments_that_are_known_later_count_too(tmp_path: Path) -> None:
    with Checkpoint(tmp_path / "run", RUN) as checkpoint:
        checkpoint.put("before", {"number": 1})
        checkpoint.require(data="here")
        checkpoint.put("name", {"number": 2})
    with Checkpoint(tmp_path / "run", RUN) as checkpoint:
        assert checkpoint.get("before") == {"number": 1}
        checkpoint.require(data="here")
        assert checkpoint.get("name") == {"number": 2}
    with Checkpoint(tmp_path / "run", RUN) as checkpoint:
        checkpoint.require(data="elsewhere")
        assert checkpoint.get("name") is None


def test_a_digest_tells_arrays_apart() -> None:
    def digest(*arrays: object) -> str:
        return digest_of([{"x": array} for array in arrays])

    texts = np.array(["a", "b"], object)
    different = [
        np.zeros(4),
        np.zeros((2, 2)),
        np.zeros(4, np.float32),
        np.ones(4),
        texts,
        texts[::-1],
        [np.zeros(4)] * 2,
    ]
    assert len({digest(array) for array in different}) == len(different)
    assert digest(np.zeros(4), np.ones(4)) != digest(np.ones(4), np.zeros(4))
    assert digest(np.zeros(4)) == digest(np.zeros(4))

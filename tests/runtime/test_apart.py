"""A signal that ends the copy is an error here; whatever else happens in it is not seen."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dynorm_onnx.errors import ModelError
from dynorm_onnx.runtime.apart import require_no_crash


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_crash_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(ModelError, match=rf"ONNX Runtime .* crashes \({name}; .*\) as it opens model.onnx"):
        require_no_crash("as it opens model.onnx", lambda: os.kill(os.getpid(), signal.Signals[name]))


def test_what_is_done_apart_changes_nothing_here(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    there: list[int] = []

    def work() -> None:
        there.append(1)
        os.write(1, b"said")
        (tmp_path / "done").touch()

    require_no_crash("as it works", work)
    assert (tmp_path / "done").exists() and not there and capfd.readouterr().out == ""


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_exceptions_are_left_to_this_process(error: type[BaseException]) -> None:
    def work() -> None:
        raise error

    require_no_crash("as it works", work)

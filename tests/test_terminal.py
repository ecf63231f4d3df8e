"""Progress where stderr is no terminal."""

from __future__ import annotations

import io
import logging
import re
import time

import pytest
from rich.console import Console

from dynorm_onnx.progress import StepClock
from dynorm_onnx.terminal import ProgressLines, log_handler, print_error, shown_progress


def test_lines_at_the_ends_of_steps_and_between() -> None:
    lines: list[str] = []
    with ProgressLines(lines.append, every=0.05) as progress:
        clock = StepClock(progress.tell)
        with clock.step("find"):
            time.sleep(0.08)
        with clock.step("calibrate") as advance:
            advance(1200, 3600)
            time.sleep(0.08)
            advance(3600, 3600)
        with clock.step("find"):
            pass
    assert [line.split(" in ")[0] for line in lines if "so far" not in line] == [
        "find: begins", "find: done", "calibrate: begins", "calibrate: done", "find: begins", "find: done",
    ]  # fmt: skip
    between = [line for line in lines if "so far" in line]
    assert any(re.fullmatch(r"find: \d+\.\d s so far", line) for line in between)
    assert any(line.startswith("calibrate: 1,200 of 3,600 norms and layers, 0.") for line in between)
    assert any(re.search(r"about \d+\.\d s left$", line) for line in between)


def test_the_time_left_is_that_of_the_part_under_way() -> None:
    """A step may have parts of very different pace, told apart by what they count up to."""
    lines: list[str] = []
    with ProgressLines(lines.append, every=60) as progress:
        progress.tell("rotate", 0, 0)
        time.sleep(0.3)
        progress.tell("rotate", 3, 3)
        progress.tell("rotate", 1, 5000)
        time.sleep(0.1)
        progress.tell("rotate", 2500, 5000)
        told = re.search(r"([\d.]+) s so far, about ([\d.]+) s left", progress._line(time.monotonic()))
    assert told is not None and float(told[1]) >= 0.4 and float(told[2]) < 0.3


def test_a_step_that_fails_is_not_done() -> None:
    lines: list[str] = []
    with pytest.raises(ValueError), ProgressLines(lines.append) as progress, StepClock(progress.tell).step("find"):
        raise ValueError
    assert lines == ["find: begins"]


@pytest.mark.parametrize(("quiet", "told"), [(False, "find: begins\n"), (True, "")])
def test_where_there_is_no_terminal_and_when_quiet(quiet: bool, told: str) -> None:
    file = io.StringIO()
    with shown_progress(Console(file=file), quiet=quiet) as progress:
        progress("find", 0, 0)
    assert file.getvalue().startswith(told) and bool(file.getvalue()) is not quiet


def test_a_bar_on_a_terminal() -> None:
    file = io.StringIO()
    with shown_progress(Console(file=file, force_terminal=True), quiet=False) as progress:
        progress("find", 1, 2)
    assert "find" in file.getvalue() and "begins" not in file.getvalue()


def test_an_error_is_printed_as_it_is() -> None:
    file = io.StringIO()
    print_error(Console(file=file, width=20), "error: [bold]x[/] of :smile: " + "long " * 10)
    assert file.getvalue().strip() == ("error: [bold]x[/] of :smile: " + "long " * 10).strip()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_message_of_the_log_is_one_line_where_there_is_no_terminal(terminal: bool) -> None:
    file = io.StringIO()
    message = "model.layers.11.post_attention_layernorm: " + ", ".join(f"channel {place}" for place in range(40))
    handler = log_handler(Console(file=file, force_terminal=terminal, width=80))
    handler.emit(logging.LogRecord("dynorm_onnx", logging.INFO, "fit.py", 1, message, None, None))
    assert (file.getvalue() == message + "\n") is not terminal

"""Some hundred damaged files: each is converted, or refused in a sentence (an hour of them: docs/limits.md)."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from tests.fuzz.run import trials
from tests.fuzz.seeds import seeds
from tests.fuzz.trial import Outcome

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are copied: not on Windows")
FILES = 60  # for each of two processes


@pytest.mark.parametrize("seed", [100, 102])
def test_damaged_files_are_converted_or_refused(seed: int, tmp_path: Path) -> None:
    ends = []
    for what, path, outcome in itertools.islice(trials(seeds(), seed, tmp_path), FILES):
        assert outcome.fault is None, f"{path.name} ({what}): {outcome.fault}\n{outcome.stderr}"
        ends.append(outcome.code)
    assert 0 in ends and 2 in ends


@pytest.mark.parametrize(
    ("outcome", "fault"),
    [
        (Outcome(0, None, 1.0, ""), None),
        (Outcome(2, None, 1.0, "error: no such file"), None),
        (Outcome(1, None, 1.0, "Traceback ...\nKeyError: 'x'"), "exit 1: KeyError: 'x'"),
        (Outcome(2, None, 1.0, "Traceback ...\nerror: it failed"), "a traceback"),
        (Outcome(None, "SIGSEGV", 1.0, ""), "SIGSEGV after 1 s"),
        (Outcome(None, "SIGALRM", 60.4, ""), "SIGALRM after 60 s"),
    ],
)
def test_what_is_a_fault(outcome: Outcome, fault: str | None) -> None:
    assert outcome.fault == fault

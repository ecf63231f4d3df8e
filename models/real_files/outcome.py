"""What became of a file, and what may not become of any."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ALLOWED = (0, 2, 3)
RUINED = 0.5  # relative error that nobody may keep quiet about
PARITY = 0.01
"""Relative error of an exact rewrite. Behind int8 activations one value that rounds the other way is a whole step."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One run of the converter."""

    code: int | None  # None where it was stopped
    seconds: float
    report: dict[str, Any] | None  # its JSON
    stderr: str

    def without(self, *folders: str) -> Outcome:
        """The same with these folders left out of what was said: where files lay says nothing to readers."""
        said = self.stderr
        for folder in folders:
            said = said.replace(f"{folder}/", "")
        return dataclasses.replace(self, stderr=said)

    @property
    def error(self) -> float | None:
        """The worst relative error of any output, infinite where one is not finite; None where nothing was compared."""
        return max(map(_error, self._compared), default=None)

    @property
    def judged_error(self) -> float | None:
        """The same without probabilities: next to nought any change is large, and the side of 0.5 is what counts."""
        judged = [output for output in self._compared if output.get("classes") != "probability"]
        return max(map(_error, judged), default=None)

    @property
    def _compared(self) -> list[dict[str, Any]]:
        return list((((self.report or {}).get("validation") or {}).get("outputs") or {}).values())

    @property
    def warned(self) -> bool:
        """Whether the report says anything at all against its own result."""
        report = self.report or {}
        verdict = report.get("verdict") or {}
        return bool(report.get("warnings")) or verdict.get("usable") is False

    @property
    def said(self) -> str:
        """The last that was said on stderr, as one line."""
        text = " ".join(self.stderr.split())
        return text[text.rfind("error: ") :] if "error: " in text else text[-300:]


def _error(output: dict[str, Any]) -> float:
    return math.inf if output["relative_error"] is None else output["relative_error"]


@dataclasses.dataclass(frozen=True)
class FileOutcome:
    """All steps of one file."""

    name: str
    size: int  # bytes
    steps: dict[str, Outcome]

    @classmethod
    def read(cls, path: Path) -> FileOutcome:
        """What dataclasses.asdict wrote."""
        read = json.loads(path.read_text())
        return cls(read["name"], read["size"], {step: Outcome(**outcome) for step, outcome in read["steps"].items()})

    def count(self, status: str, step: str = "find") -> int:
        """Norms of that status in one step's report."""
        report = self.steps[step].report or {}
        return sum(site["status"] == status for site in report.get("sites", ()))


def faults(outcome: FileOutcome) -> list[str]:
    """Sentences about every way that a conversion may not end in; empty for a good file."""
    return [f"{step}: {fault}" for step, done in outcome.steps.items() for fault in _faults(step, done)]


def _faults(step: str, done: Outcome) -> Iterator[str]:
    if done.code is None:
        yield done.stderr
    elif done.code not in ALLOWED:
        yield f"exit {done.code}: {done.said}"
    if "Traceback (most recent call last)" in done.stderr:
        yield "a traceback"
    if done.code == 0 and done.report is None:
        yield "exit 0 and no report"
    if done.error is None or done.warned:
        return
    if done.judged_error is not None and not done.judged_error <= RUINED:
        yield f"relative error {done.judged_error:.2g} without a warning"
    elif step == "rmsnorm" and done.error > PARITY:
        yield f"an exact rewrite is off by {done.error:.2g} without a warning"

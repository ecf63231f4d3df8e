"""What became of one environment, and all of them as a table."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

SHOWN = ("numpy", "ml_dtypes", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "protobuf")
HEAD = ("Python", "set", *SHOWN, "opsets", "passed", "failed", "skipped")
BEGIN, END = "<!-- environments: begin -->", "<!-- environments: end -->"
_OPSET = re.compile(r"\[opset(\d+)\]$")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`problem` says why nothing ran; `opsets` are those that the command passed at."""

    set_name: str
    python: str
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    passed: int = 0
    skipped: int = 0
    failures: Sequence[str] = dataclasses.field(default_factory=list)
    opsets: Sequence[int] = dataclasses.field(default_factory=list)
    problem: str = ""
    date: str = ""

    @property
    def good(self) -> bool:
        return not self.problem and not self.failures and self.passed > 0

    def is_of(self, pins: Mapping[str, str]) -> bool:
        """Whether it is of these versions."""
        return all(pins.get(package) == version for package, version in self.versions.items())

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self)) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Outcome:
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))


def counted(junit: str) -> dict[str, object]:
    """passed, skipped, failures and opsets of a JUnit report; what failed to be collected is a failure."""
    passed, skipped, failures, opsets = 0, 0, [], []
    for case in ElementTree.fromstring(junit).iter("testcase"):
        name = case.get("name", "")
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(f"{case.get('classname') or ''}::{name}".lstrip(":"))
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
            opsets += [int(opset) for opset in _OPSET.findall(name)]
    # A test that fails, and then in its teardown too, is in the report twice.
    return {"passed": passed, "skipped": skipped, "failures": sorted(set(failures)), "opsets": sorted(set(opsets))}


def ranges(numbers: Iterable[int]) -> str:
    """11, 12, 13, 20 as "11-13, 20"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def table(outcomes: Iterable[Outcome]) -> str:
    """Markdown."""
    rows = [HEAD, ("---",) * len(HEAD), *map(_row, outcomes)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(outcome: Outcome) -> tuple[str, ...]:
    versions = tuple(outcome.versions.get(package, "") for package in SHOWN)
    if outcome.problem:
        return (outcome.python, outcome.set_name, *versions, "", f"not run: {outcome.problem}", "", "")
    counts = map(str, (outcome.passed, len(outcome.failures), outcome.skipped))
    return (outcome.python, outcome.set_name, *versions, ranges(outcome.opsets), *counts)


def put(page: str, outcomes: Sequence[Outcome]) -> str:
    """The page with this table between its marks, and the days of its rows above it."""
    head, found, rest = page.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    days = sorted({outcome.date for outcome in outcomes if outcome.date})
    ran = f"Run on {days[0]}{f' to {days[-1]}' if days[1:] else ''}." if days else "Nothing was run."
    return f"{head}{BEGIN}\n{ran}\n\n{table(outcomes)}\n{END}{tail}"

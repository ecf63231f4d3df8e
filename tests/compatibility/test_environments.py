"""The table of environments, and what is read from their runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.compatibility import run
from tests.compatibility.environments import ROOT, TABLE, build_tools, constraints, environments, newest, oldest
from tests.compatibility.outcome import BEGIN, END, Outcome, counted, put, ranges, table

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BOUND = re.compile(r"^([A-Za-z0-9_-]+)(?:\[[^]]*\])?>=([0-9.]+)$")
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.end_to_end.test_opsets" name="test_converted_at[opset11]"/>
<testcase classname="tests.end_to_end.test_opsets" name="test_converted_at[opset12]"><failure message="no"/></testcase>
<testcase classname="tests.end_to_end.test_opsets" name="test_converted_at[opset12]"><error message="late"/></testcase>
<testcase classname="tests.end_to_end.test_opsets" name="test_converted_at[opset13]"><skipped/></testcase>
<testcase classname="tests.test_x" name="test_x"/>
<testcase classname="" name="tests.test_gone"><error message="collection failure"/></testcase>
</testsuite></testsuites>"""


def padded(version: str) -> tuple[int, ...]:
    return tuple(map(int, (version + ".0.0").split(".")[:3]))


def test_the_bounds_of_the_package_are_the_oldest_versions_that_are_run() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    required = [
        *PROJECT["project"]["dependencies"],
        *(line for extra in run.EXTRAS.split(",") for line in extras[extra]),
    ]
    bounds = dict(BOUND.match(line).groups() for line in required)  # type: ignore[union-attr]
    assert {name: padded(bound) for name, bound in bounds.items()} == {
        name: padded(version) for name, version in TABLE["oldest"].items()
    }
    build = dict(BOUND.match(line).groups() for line in PROJECT["build-system"]["requires"])  # type: ignore[union-attr]
    assert padded(build["scikit-build-core"]) == padded(TABLE["oldest_build"]["scikit-build-core"])


def test_the_oldest_python_is_the_required_one() -> None:
    assert PROJECT["project"]["requires-python"] == f">={TABLE['pythons'][0]}"


def test_what_is_run_is_there() -> None:
    for named in TABLE["tests"]:
        path, _, function = named.partition("::")
        assert (ROOT / path).exists(), named
        assert not function or f"def {function}(" in (ROOT / path).read_text(), named


def test_every_python_has_the_oldest_and_the_newest() -> None:
    every = environments()
    for python in TABLE["pythons"]:
        pins = [environment.pins for environment in every if environment.python == python]
        assert oldest(python) in pins and newest() in pins
    assert len({environment.folder for environment in every}) == len(every)
    mixed = next(e for e in every if e.set_name == "newest, oldest ONNX Runtime")
    assert mixed.pins == newest() | {"onnxruntime": TABLE["oldest"]["onnxruntime"]}


def test_one_python_builds_with_the_oldest_tools() -> None:
    first, second, *_ = TABLE["pythons"]
    assert "cmake==3.24.0" in build_tools(first) and "cmake" in build_tools(second)


def test_constraints_are_read_without_their_comments() -> None:
    assert constraints("# all\nnumpy==2.4.6\n\nonnx==1.23.2  # newest\n") == {"numpy": "2.4.6", "onnx": "1.23.2"}


def test_a_report_is_counted() -> None:
    assert counted(JUNIT) == {
        "passed": 2,
        "skipped": 1,
        "failures": ["tests.end_to_end.test_opsets::test_converted_at[opset12]", "tests.test_gone"],
        "opsets": [11],
    }


@pytest.mark.parametrize(
    ("numbers", "said"), [([], ""), ([11], "11"), ([13, 11, 12], "11-13"), ([11, 12, 20, 22, 23], "11-12, 20, 22-23")]
)
def test_ranges(numbers: list[int], said: str) -> None:
    assert ranges(numbers) == said


def test_the_table_goes_between_its_marks_and_an_outcome_into_a_file(tmp_path: Path) -> None:
    good = Outcome("oldest", "3.11.7", {"onnx": "1.19.0"}, 5, 2, opsets=[11, 12], date="2026-11-30")
    bad = Outcome("oldest", "3.12", problem="no Python 3.12 was found")
    good.write(tmp_path / "results" / "good.json")
    assert Outcome.read(tmp_path / "results" / "good.json") == good and good.good and not bad.good
    assert good.is_of({"onnx": "1.19.0", "numpy": "2"}) and not good.is_of({"onnx": "1.20.0"})
    page = put(f"before\n{BEGIN}\nold\n{END}\nafter\n", [good, bad])
    assert page.startswith("before\n") and page.endswith("after\n") and "old\n" not in page
    assert table([good, bad]) in page and "Run on 2026-11-30." in page
    assert "| 11-12 | 5 | 0 | 2 |" in page and "not run: no Python 3.12 was found" in page
    with pytest.raises(ValueError, match="has no"):
        put("nothing", [])


def test_interpreters_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    broken = tmp_path / "python3.12"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    assert run.interpreters([str(broken), str(tmp_path / "nowhere")]) == {}


def test_a_missing_python_is_an_outcome_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WORK", tmp_path)
    outcome = run.Run({}, 1).run(environments()[0])
    assert not outcome.good and outcome.problem == "no Python 3.11 was found; PYTHONS names the interpreters"

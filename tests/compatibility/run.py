"""Run the tests that cover the tool over the oldest and newest versions of what it stands on, on every Python.

    python -m tests.compatibility.run [--pythons "python3.11 ..."] [--python 3.12] [--set oldest] [--write PAGE]

Each environment is made under .venv/compatibility, from the wheel that the Python in it has built. What became of it
stays there, so that a table is whole after a part was run again. Exits with 1 where a test failed, or where an
environment could not be run, for want of its Python or because it could not be installed.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.compatibility.environments import ROOT, TABLE, Environment, build_tools, environments
from tests.compatibility.outcome import Outcome, counted, put, table

WORK = ROOT / ".venv" / "compatibility"
EXTRAS = "cpu,text,report"
SHOWN = 20  # failures; all of them are in the log
TOOLS = ("pytest", "pytest-xdist", "hypothesis")
CPU_ONLY = "cmake.define.DYNORM_CUDA=OFF"  # no test of these needs a GPU, and nvcc takes minutes
# What is installed, and where from: the checkout must not come before it.
LOOK = """
import importlib.metadata, json, platform, sys
import dynorm_onnx
from dynorm_onnx.custom_ops import library_providers
versions = {name: importlib.metadata.version(name) for name in sys.argv[1:]}
print(json.dumps([platform.python_version(), dynorm_onnx.__file__, library_providers(), versions]))
"""


class NotRunError(Exception):
    """Why an environment could not be run."""


def interpreters(names: list[str]) -> dict[str, str]:
    """The given interpreters by their versions, as "3.11"; those that are not there, or do not answer, are left out."""
    found = {}
    for name in names:
        try:
            asked = [name, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            done = subprocess.run(asked, capture_output=True, text=True)
        except OSError:
            continue
        if done.returncode == 0:
            found.setdefault(done.stdout.strip(), name)
    return found


def call(*command: object, what: str) -> str:
    """stdout of a command. Raises NotRunError if it fails, with the place of all that it said."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT, env=_outside())
    if done.returncode:
        WORK.mkdir(parents=True, exist_ok=True)
        log = WORK / f"{what.replace(' ', '_')}.log"
        log.write_text(f"{command}\n{done.stdout}{done.stderr}", encoding="utf-8")
        raise NotRunError(f"{what}; see {log.relative_to(ROOT)}")
    return done.stdout


def _outside() -> dict[str, str]:
    """The variables of the environment without those that lead to the checkout or to another build."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DYNORM_LIBRARY")}
    return kept | {"PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def build_wheel(python: str, interpreter: str) -> Path:
    """The wheel of this checkout, built by a Python; the one from before where no file of the package has changed."""
    folder = WORK / f"{python}-build"
    stamp, wanted = folder / "built.json", json.dumps([build_tools(python), _sources()])
    if not (stamp.is_file() and stamp.read_text() == wanted):
        shutil.rmtree(folder, ignore_errors=True)
        call(interpreter, "-m", "venv", folder / "venv", what="an environment cannot be made")
        pip = (folder / "venv" / "bin" / "python", "-m", "pip")
        call(*pip, "install", "-q", *build_tools(python), "ninja", what="the build tools cannot be installed")
        options = ("--no-deps", "--no-build-isolation", "-C", CPU_ONLY, "-w", folder)
        call(*pip, "wheel", "-q", *options, ROOT, what="the wheel cannot be built")
        stamp.write_text(wanted)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _sources() -> str:
    """A digest of what goes into a wheel."""
    files = [ROOT / "pyproject.toml", *(ROOT / "custom_ops").rglob("*"), *(ROOT / "dynorm_onnx").rglob("*")]
    digest = hashlib.sha256()
    for file in sorted(path for path in files if path.is_file() and path.suffix != ".pyc"):
        digest.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def install(environment: Environment, interpreter: str, wheel: Path) -> Path:
    """The Python of an environment that has these versions and this wheel in it; as it is if it had them before."""
    folder = WORK / environment.folder
    python, stamp = folder / "bin" / "python", folder / "installed.json"
    wanted = json.dumps([environment.pins, hashlib.sha256(wheel.read_bytes()).hexdigest()])
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    call(interpreter, "-m", "venv", folder, what="an environment cannot be made")
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{package}=={version}\n" for package, version in environment.pins.items()))
    named = f"dynorm-onnx[{EXTRAS}] @ {wheel.as_uri()}"
    call(
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--only-binary",
        ":all:",
        "-c",
        pins,
        named,
        *TOOLS,
        what="the versions cannot be installed",
    )
    packages = call(
        python,
        "-c",
        "import sysconfig; print(sysconfig.get_paths()['purelib'])",
        what="the environment has no folder of packages",
    ).strip()
    (Path(packages) / "tests_of_the_checkout.pth").write_text(f"{ROOT}\n")
    stamp.write_text(wanted)
    return python


def look(environment: Environment, python: Path) -> tuple[str, dict[str, str]]:
    """(version of Python, versions of the packages). Raises NotRunError if it is not the installed wheel that runs."""
    version, file, providers, versions = json.loads(
        call(python, "-c", LOOK, *environment.pins, what="the package cannot be imported")
    )
    if not Path(file).is_relative_to(WORK):
        raise NotRunError(f"{file} would be run, and not the wheel")
    if not providers:
        raise NotRunError("the wheel has no library of operators")
    if wrong := {name: found for name, found in versions.items() if found != environment.pins[name]}:
        raise NotRunError(f"other versions were installed: {wrong}")
    return version, versions


def count_tests(environment: Environment, python: Path, processes: int) -> dict[str, Any]:
    """What pytest counts."""
    report, log = WORK / f"{environment.folder}.xml", WORK / f"{environment.folder}.log"
    report.unlink(missing_ok=True)
    options = ("-p", "no:cacheprovider", "--import-mode=append", "-o", "addopts=", "-m", "not zoo", "-q", "--tb=short")
    command = [python, "-m", "pytest", *options, "-n", str(processes), f"--junitxml={report}", *TABLE["tests"]]
    with log.open("w", encoding="utf-8") as file:
        subprocess.run([*map(str, command)], stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=_outside())
    if not report.is_file():
        raise NotRunError(f"pytest wrote no report; see {log.relative_to(ROOT)}")
    return counted(report.read_text(encoding="utf-8"))


def run(environment: Environment, interpreter: str, wheel: Path, processes: int) -> Outcome:
    python = install(environment, interpreter, wheel)
    version, versions = look(environment, python)
    counts = count_tests(environment, python, processes)
    return Outcome(environment.set_name, version, versions, date=f"{datetime.date.today()}", **counts)


class Run:
    """The environments one after another, each Python's wheel built once."""

    def __init__(self, there: dict[str, str], processes: int) -> None:
        self._there, self._processes = there, processes
        self._wheels: dict[str, Path] = {}

    def run(self, environment: Environment) -> Outcome:
        """What became of it, which also stays in its file."""
        try:
            interpreter = self._interpreter(environment)
            if environment.python not in self._wheels:
                say(f"{environment.python}: building a wheel with {interpreter}")
                self._wheels[environment.python] = build_wheel(environment.python, interpreter)
            say(f"{environment.python}, {environment.set_name}")
            outcome = run(environment, interpreter, self._wheels[environment.python], self._processes)
        except NotRunError as problem:
            outcome = Outcome(environment.set_name, environment.python, environment.pins, problem=str(problem))
        outcome.write(_kept(environment))
        for line in (*([outcome.problem] if outcome.problem else []), *outcome.failures[:SHOWN]):
            say(f"  {line}")
        say(f"  {outcome.passed} passed, {len(outcome.failures)} failed, {outcome.skipped} skipped")
        return outcome

    def _interpreter(self, environment: Environment) -> str:
        if environment.python not in self._there:
            raise NotRunError(f"no Python {environment.python} was found; PYTHONS names the interpreters")
        return self._there[environment.python]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _kept(environment: Environment) -> Path:
    return WORK / "results" / f"{environment.folder}.json"


def left_out(environment: Environment) -> Outcome:
    """What an earlier run of the same versions found."""
    if (path := _kept(environment)).is_file() and (outcome := Outcome.read(path)).is_of(environment.pins):
        return outcome
    return Outcome(environment.set_name, environment.python, environment.pins, problem="left out")


def main(arguments: list[str] | None = None) -> int:
    default = os.environ.get("PYTHONS") or " ".join(f"python{version}" for version in TABLE["pythons"])
    names = [entry["name"] for entry in TABLE["sets"]]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", default=default, help="interpreters, by name or path (the variable PYTHONS)")
    parser.add_argument("--python", action="append", choices=TABLE["pythons"], help="only this one; repeatable")
    parser.add_argument("--set", action="append", choices=names, help="only this one; repeatable")
    parser.add_argument("--processes", type=int, default=2, help="of pytest (2)")
    parser.add_argument("--write", type=Path, help="the page to put the table into")
    args = parser.parse_args(arguments)
    pythons, sets = args.python or TABLE["pythons"], args.set or names
    runner = Run(interpreters(args.pythons.split()), args.processes)
    outcomes = [
        runner.run(environment)
        if environment.python in pythons and environment.set_name in sets
        else left_out(environment)
        for environment in environments()
    ]
    print(table(outcomes))
    if args.write is not None:
        args.write.write_text(put(args.write.read_text(encoding="utf-8"), outcomes), encoding="utf-8")
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What `make wheel` wrote, and environments in which there is no compiler and no checkout."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.shipped import MODEL, TEXT

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
PYTHONS = os.environ.get("DYNORM_PYTHONS", sys.executable).split()
"""The interpreters that the wheel is installed for."""

NEEDED = ("env", "sh", "uname")  # by scripts of installed programs and by CMake
OF_THE_CHECKOUT = ("PYTHONPATH", "DYNORM_LIBRARY", "VIRTUAL_ENV", "DYNORM_REQUIRE_LIBRARY")


@pytest.fixture(scope="session")
def wheel() -> Path:
    return only("*.whl")


@pytest.fixture(scope="session")
def sdist() -> Path:
    return only("*.tar.gz")


def only(pattern: str) -> Path:
    found = sorted((ROOT / "dist").glob(pattern))
    assert len(found) == 1, f"dist/ has {len(found)} files {pattern}, not one: run make wheel"
    return found[0]


class Environment:
    """A fresh virtual environment, an empty folder to work in, and a PATH on which no compiler is."""

    def __init__(self, interpreter: str, folder: Path) -> None:
        self.folder = folder / "work"
        self.programs = folder / "venv" / "bin"
        tools = folder / "tools"
        for made in (self.folder, tools):
            made.mkdir()
        for name in NEEDED:
            (tools / name).symlink_to(shutil.which(name) or f"/bin/{name}")
        kept = {name: value for name, value in os.environ.items() if name not in OF_THE_CHECKOUT}
        nowhere = {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++", "CUDACXX": "/nonexistent/nvcc"}
        self.variables = {**kept, **nowhere, "PATH": f"{self.programs}:{tools}", "PIP_NO_CACHE_DIR": "1"}
        subprocess.run([interpreter, "-m", "venv", str(folder / "venv")], check=True)

    def run(self, *command: object, more: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        arguments = [str(self.programs / str(command[0])), *map(str, command[1:])]
        variables = {**self.variables, **(more or {})}
        return subprocess.run(arguments, cwd=self.folder, env=variables, capture_output=True, text=True)

    def stdout_of(self, *command: object, more: Mapping[str, str] | None = None) -> str:
        ran = self.run(*command, more=more)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def output_of(self, *command: object) -> str:
        """Of a program that tells what it does on both streams."""
        ran = self.run(*command)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr


@pytest.fixture(scope="session")
def environment_of(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Callable[[str], Environment]:
    """By interpreter, made once: the wheel and what it depends on, and the shipped model with its text to work on."""

    @functools.cache
    def make(interpreter: str) -> Environment:
        environment = Environment(interpreter, tmp_path_factory.mktemp("installed"))
        environment.output_of("python", "-m", "pip", "install", "-c", CONSTRAINTS, f"{wheel}[cpu,text]")
        for file in (MODEL, MODEL.with_name("tokenizer.json"), TEXT):
            shutil.copy(file, environment.folder)
        return environment

    return make


@pytest.fixture(params=PYTHONS, ids=str)
def installed(request: pytest.FixtureRequest, environment_of: Callable[[str], Environment]) -> Environment:
    return environment_of(request.param)


@pytest.fixture(scope="session")
def first_installed(environment_of: Callable[[str], Environment]) -> Environment:
    """For what no version of Python makes different."""
    return environment_of(PYTHONS[0])

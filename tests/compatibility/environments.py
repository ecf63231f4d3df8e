"""Which versions are run on which Python: environments.toml, with the newest ones from constraints.txt."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TABLE = tomllib.loads((Path(__file__).parent / "environments.toml").read_text(encoding="utf-8"))
ALL = "*"


@dataclasses.dataclass(frozen=True)
class Environment:
    """One set of versions on one Python, as "3.11"."""

    python: str
    set_name: str
    pins: dict[str, str]

    @property
    def folder(self) -> str:
        return f"{self.python}-{self.set_name.replace(',', '').replace(' ', '-')}"


def constraints(text: str) -> dict[str, str]:
    """The versions of a constraints file, by package."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return dict(line.split("==", 1) for line in lines if line)


def newest() -> dict[str, str]:
    pins = constraints((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    return {package: pins[package] for package in TABLE["oldest"]}


def oldest(python: str) -> dict[str, str]:
    """The lower bounds, or the first version with a wheel for this Python where that came later."""
    return TABLE["oldest"] | TABLE["first_wheels"].get(python, {})


def pins_of(entry: dict[str, Any], python: str) -> dict[str, str]:
    """The versions of a set on a Python: the newest, but for the packages that it wants the oldest of, or others."""
    old = oldest(python)
    wanted = old if ALL in entry["oldest"] else {package: old[package] for package in entry["oldest"]}
    return newest() | wanted | entry.get("others", {})


def environments() -> list[Environment]:
    return [
        Environment(python, entry["name"], pins_of(entry, python))
        for python in TABLE["pythons"]
        for entry in TABLE["sets"]
        if python in entry.get("pythons", TABLE["pythons"])
    ]


def build_tools(python: str) -> list[str]:
    """What a Python builds the wheel with, as pip takes it: the oldest on the first one, else the newest."""
    old = python == TABLE["pythons"][0]
    return [f"{tool}=={version}" if old else tool for tool, version in TABLE["oldest_build"].items()]

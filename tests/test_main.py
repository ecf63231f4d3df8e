"""`dynorm-onnx` and `python -m dynorm_onnx`: what each command is called, and what it need not load."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import dynorm_onnx
from dynorm_onnx.__main__ import COMMANDS, main

PACKAGE = Path(dynorm_onnx.__file__).parent


def test_help_has_a_line_for_each_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == "usage: dynorm-onnx [-h] [--version] COMMAND ..."
    for name, command in COMMANDS.items():
        assert f"{name:9} {command.help}" in shown


@pytest.mark.parametrize("given", [[], ["konvert", "model.onnx"], ["--to", "dyt"], ["--", "convert"]])
def test_what_is_no_command_is_wrong_use(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(given)
    assert left.value.code == 2
    assert "usage: dynorm-onnx" in capsys.readouterr().err


@pytest.mark.parametrize("prog", ["dynorm-onnx", "python -m dynorm_onnx"])
@pytest.mark.parametrize(("name", "wrong"), [("convert", []), ("serve", ["triton"]), ("bench", []), ("paper", ["x"])])
def test_usage_names_the_command_as_it_was_called(
    name: str, wrong: list[str], prog: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, *wrong], prog=prog)
    assert left.value.code == 2
    said = capsys.readouterr().err
    inner = wrong if name == "serve" else []
    assert said.startswith(f"usage: {' '.join([prog, name, *inner])} [-h]")


def test_the_exit_code_is_the_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["convert", str(tmp_path / "gone.onnx")]) == 2
    assert "gone.onnx" in capsys.readouterr().err


def test_the_version_is_told_before_anything_heavy_is_loaded() -> None:
    code = "import sys\nfrom dynorm_onnx.__main__ import main\ntry: main(['--version'])\nfinally: print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    version, modules = ran.stdout.splitlines()
    assert version == f"dynorm-onnx {dynorm_onnx.__version__}"
    assert not {"numpy", "onnx", "rich", "importlib.metadata"} & set(modules.split())


def loaded_by(module: str) -> set[str]:
    """The modules of the package that importing one brings along: those that no function waits with."""
    loaded: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        loaded.add(name)
        waiting |= {found for found in imported_at_once(file_of(name)) if file_of(found)} - loaded
    return loaded


def file_of(module: str) -> Path | None:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@functools.cache
def imported_at_once(file: Path | None) -> tuple[str, ...]:
    """Names of modules, or of what they hold; of the packages that these are in as well."""
    assert file is not None
    found: list[str] = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        stem = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for name in names:
            steps = f"{stem}{name}".split(".")
            found += (".".join(steps[: i + 1]) for i in range(len(steps)) if steps[0] == "dynorm_onnx")
    return tuple(found)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_loads_none_of_the_others(name: str) -> None:
    loaded = loaded_by(COMMANDS[name].module)
    assert len(loaded) > 50  # it was followed
    others = {command.module for command in COMMANDS.values()} - {COMMANDS[name].module}
    parts = {"serving", "bench", "paper", "pytorch"} - {COMMANDS[name].module.split(".")[1]}
    found = {module for module in loaded if module in others or module.split(".")[1:2] in [[part] for part in parts]}
    assert not found

"""The public API is what tests/public_api.py says, and tells its users what they must know."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynorm_onnx import errors
from dynorm_onnx.config import ConvertConfig
from dynorm_onnx.functions import FUNCTIONS
from tests.public_api import PAPERS, PUBLIC

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "models").glob("*/README.md")])
ERRORS = tuple(name for name, value in vars(errors).items() if inspect.isclass(value))
ARRAYS = re.compile(r"ndarray|Tensor\b|Feeds")
SHAPE = re.compile(r"\[[^\]]*\]|shape|scalar")
TYPE = re.compile(r"float|int\d|type|nn\.Module")


def public() -> Iterator[tuple[str, Any]]:
    """Functions and classes, and the public methods that a class has of its own, by their full names."""
    for module, names in PUBLIC.items():
        for name in names:
            value = getattr(importlib.import_module(module), name)
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{module}.{name}", value
            if inspect.isclass(value):
                yield from ((f"{module}.{name}.{own}", method) for own, method in methods(value))


def methods(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    ours = (base for base in reversed(cls.__mro__) if base.__module__.startswith("dynorm_onnx"))
    found = {name: value for base in ours for name, value in vars(base).items() if not name.startswith("_")}
    for name, value in found.items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if inspect.isfunction(function):
            yield name, function


EVERYTHING = dict(public())
FUNCTIONS_OF = {name: value for name, value in EVERYTHING.items() if inspect.isfunction(value)}


def test_every_module_gives_what_is_stated() -> None:
    for module, names in PUBLIC.items():
        found = importlib.import_module(module)
        own = [name for name, value in vars(found).items() if getattr(value, "__module__", "") == module]
        given = getattr(found, "__all__", [name for name in own if not name.startswith("_")])
        assert sorted(given) == sorted(names), module


def test_modules_are_there_without_an_import_of_their_own() -> None:
    code = "import dynorm_onnx; print(dynorm_onnx.custom_ops.library_path, dynorm_onnx.errors.DynormError)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_import_what_is_public(page: Path) -> None:
    for module, names in re.findall(r"^\s*from (dynorm_onnx[\w.]*) import ([\w, ]+)", page.read_text(), re.MULTILINE):
        for name in names.split(", "):
            assert f"{module}.{name}" in PUBLIC or name in PUBLIC.get(module, ()), f"{module}.{name}"


@pytest.mark.parametrize("name", EVERYTHING)
def test_everything_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(EVERYTHING[name]), name
    if inspect.isclass(EVERYTHING[name]):
        assert EVERYTHING[name].__doc__, f"{name} has only what it inherits"


@pytest.mark.parametrize("name", FUNCTIONS_OF)
def test_every_parameter_has_a_type(name: str) -> None:
    signature = inspect.signature(FUNCTIONS_OF[name])
    bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")]
    assert not bare and signature.return_annotation is not signature.empty


@pytest.mark.parametrize("name", [name for name in FUNCTIONS_OF if name.rpartition(".")[0] in PUBLIC])
def test_every_parameter_of_a_function_is_told(name: str) -> None:
    told = inspect.getdoc(FUNCTIONS_OF[name]) or ""
    parameters = inspect.signature(FUNCTIONS_OF[name]).parameters
    assert not [parameter for parameter in parameters if not re.search(rf"\b{parameter}\b", told)]


@pytest.mark.parametrize("name", FUNCTIONS_OF)
def test_what_is_raised_is_told(name: str) -> None:
    """By the function itself; what those that it calls raise is for its author to tell."""
    told = inspect.getdoc(FUNCTIONS_OF[name]) or ""
    tree = ast.parse(textwrap.dedent(inspect.getsource(FUNCTIONS_OF[name])))
    calls = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call))
    for raised in {getattr(call.func, "id", "") for call in calls} & set(ERRORS):
        assert re.search(rf"[Rr]aises.*{raised}", told, re.DOTALL), f"{name} does not tell of {raised}"


@pytest.mark.parametrize("name", FUNCTIONS_OF)
def test_arrays_have_shapes_and_types(name: str) -> None:
    hints = inspect.get_annotations(FUNCTIONS_OF[name])
    if not ARRAYS.search(" ".join(map(str, hints.values()))):
        return
    told = inspect.getdoc(FUNCTIONS_OF[name]) or ""
    assert SHAPE.search(told) and TYPE.search(told), f"{name}: of what shapes and types are {hints}?"


def test_every_knob_of_a_conversion_is_told() -> None:
    told = EVERYTHING["dynorm_onnx.convert_model"].__doc__
    knobs = [field.name for field in dataclasses.fields(ConvertConfig)]
    assert not [knob for knob in knobs if not re.search(rf"^\s+(\w+, )*{knob}(, \w+)*: ", told, re.MULTILINE)]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_every_function_has_its_paper(function: Any) -> None:
    paper = PAPERS[function.op_type]
    sources = inspect.getmodule(function.core).__doc__, EVERYTHING[f"dynorm_onnx.pytorch.{function.op_type}"].__doc__
    assert all(paper in told for told in sources)
    number = paper.removeprefix("arXiv ")
    assert all(number in (ROOT / file).read_text() for file in ("README.md", "CITATION.cff"))

"""KServe's own description of an InferenceService, out of the classes in the PyPI package kserve, without importing it.

The package brings no CRD and no JSON schema, and importing it needs a web server and a Kubernetes client. But its
classes are generated from the CRD's OpenAPI schema, and each says what its fields are called, what types they have
(`openapi_types`, `attribute_map`) and, in its setters, which must be there.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

INSTALL = "pip install --no-deps kserve"
_SCALARS = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def is_installed() -> bool:
    return importlib.util.find_spec("kserve") is not None


def faults(kind: str, value: Any, path: str = "") -> list[str]:
    """What is wrong with a value of a type in KServe's words: names that it does not have, types, what is missing.

    Types of Kubernetes itself (V1Container, ...) are not looked into: KServe's package does not describe them.
    """
    if listed := re.fullmatch(r"list\[(.*)\]", kind):
        if not isinstance(value, list):
            return [f"{path}: is no list"]
        return [fault for i, item in enumerate(value) for fault in faults(listed[1], item, f"{path}[{i}]")]
    if mapped := re.fullmatch(r"dict\(str, (.*)\)", kind):
        if not isinstance(value, dict):
            return [f"{path}: is no mapping"]
        return [fault for key, item in value.items() for fault in faults(mapped[1], item, f"{path}.{key}")]
    if kind in _SCALARS:
        fits = isinstance(value, _SCALARS[kind]) and (kind == "bool" or not isinstance(value, bool))
        return [] if fits else [f"{path}: {value!r} is no {kind}"]
    file = _models() / f"{_snake(kind)}.py"
    if not file.is_file():
        return []
    if not isinstance(value, dict):
        return [f"{path}: is no object"]
    types, required = _fields(file)
    unknown = [f"{path}.{name}: there is no such field of {kind}" for name in value if name not in types]
    missing = [f"{path}.{name}: must be there" for name in required if name not in value]
    inner = [
        fault for name, item in value.items() if name in types for fault in faults(types[name], item, f"{path}.{name}")
    ]
    return unknown + missing + inner


def _models() -> Path:
    spec = importlib.util.find_spec("kserve")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "models"


def _snake(kind: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind).lower()


@functools.cache
def _fields(file: Path) -> tuple[dict[str, str], frozenset[str]]:
    """(types of fields by their names in YAML, those that must be there)."""
    source = file.read_text(encoding="utf-8")
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("openapi_types", "attribute_map")
    }
    names = tables["attribute_map"]
    required = re.findall(r"Invalid value for `(\w+)`, must not be `None`", source)
    return {names[field]: kind for field, kind in tables["openapi_types"].items()}, frozenset(
        names[field] for field in required
    )

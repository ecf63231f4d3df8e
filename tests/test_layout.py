"""The layout of the package: imports point only downwards, and heavy packages stay where they belong."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dynorm_onnx"
# From the top down. A module may import from its own layer and from those below; `convert` may import from everywhere.
LAYERS = (
    ("convert", "serving", "__main__", "__init__"),
    ("conversion",),
    ("report", "paper", "bench"),
    ("pytorch",),
    ("calibration",),
    ("runtime",),
    ("graph",),
    ("custom_ops",),
    ("functions",),
    ("config", "errors", "plotting", "progress", "terminal"),
)
# Within packages, likewise; modules that are named nowhere lie in one of these.
INNER = {
    "graph": (
        ("streams",),
        ("fold",),
        ("replace",),
        ("linear",),
        ("lower",),
        ("sites",),
        ("forms", "quantised"),
        ("files",),
        ("edit",),
        ("values",),
        ("norm_site", "quiet"),
    ),
    "calibration": (("layers",), ("tail", "rotation"), ("norms",), ("stages",), ("data",), ("checkpoint",)),
}
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))
OWNERS = {"torch": ("pytorch",), "onnxruntime": ("runtime", "custom_ops")}
ALONE = PACKAGE / "serving" / "triton_model.py"  # copied to servers that may lack this package


def part_of(path: Path) -> str:
    """The name in LAYERS that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever it does so, with the line; relative imports resolved."""
    package = ["dynorm_onnx", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from dynorm_onnx import graph` names the module only in the alias
            yield from ((f"{stem}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    part = part_of(path)
    assert part in RANK, f"{part} has no place in the layout"
    for module, line in imported(path):
        steps = module.split(".")
        if steps[0] != "dynorm_onnx" or len(steps) < 2 or steps[1] not in RANK:
            continue
        assert RANK[steps[1]] >= RANK[part], f"{path.name}:{line} ({part}) imports {module} from above"


@pytest.mark.parametrize("package", INNER)
def test_imports_within_a_package_point_downwards(package: str) -> None:
    rank = {name: place for place, names in enumerate(INNER[package]) for name in names}
    for path in sorted((PACKAGE / package).rglob("*.py")):
        inner = path.relative_to(PACKAGE / package).parts[0].removesuffix(".py")
        if inner == "__init__":
            continue
        assert inner in rank, f"{package}/{inner} has no place in the layout"
        for module, line in imported(path):
            steps = module.split(".")
            if steps[:2] == ["dynorm_onnx", package] and len(steps) > 2 and steps[2] in rank:
                assert rank[steps[2]] >= rank[inner], f"{path}:{line} imports {module} from above"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_packages_stay_with_their_owners(path: Path) -> None:
    for module, line in imported(path):
        owners = OWNERS.get(module.split(".")[0])
        assert not owners or part_of(path) in owners or path == ALONE, f"{path.name}:{line} imports {module}"


def test_a_test_lies_where_its_module_lies() -> None:
    """tests/graph/sites/test_select.py and test_select_more.py are of dynorm_onnx/graph/sites/select.py, and
    test_main.py of __main__.py. Folders that mirror none of the package are listed in docs/contributing.md."""
    tests = Path(__file__).parent
    for test in sorted(tests.rglob("test_*.py")):
        home = PACKAGE / test.parent.relative_to(tests)
        if home == PACKAGE or not home.is_dir():
            continue
        names = {home.name, *(part.stem.strip("_") for part in home.iterdir())}
        told = test.stem.removeprefix("test_")
        assert any(told == name or told.startswith(f"{name}_") for name in names), f"{test} is named after no module"

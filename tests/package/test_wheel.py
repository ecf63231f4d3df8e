"""The wheel and the sdist that `make wheel` wrote, installed where there is neither a compiler nor the checkout."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from dynorm_onnx import __version__
from dynorm_onnx.__main__ import COMMANDS
from tests.package.conftest import Environment

pytestmark = pytest.mark.package

LITTLE = ("--data", "held_out.txt", "--samples", "4", "--max-length", "32", "--method", "fit", "--no-rotate", "--json")
CONVERT = ("convert", "byte_llama.onnx", "--to", "dyisru", *LITTLE)
WHERE = "from dynorm_onnx.custom_ops import library_path, library_providers as p; print(library_path(), *p())"
RUN_BY_THE_LIBRARY = """
import collections, json, numpy, onnxruntime, dynorm_onnx.custom_ops
options = onnxruntime.SessionOptions()
options.enable_profiling = True
dynorm_onnx.custom_ops.register(options)
session = onnxruntime.InferenceSession("byte_llama.dyisru.onnx", options)
session.run(None, {i.name: numpy.ones((1, 8), numpy.int64) for i in session.get_inputs()})
events = json.load(open(session.end_profiling()))
print(json.dumps(collections.Counter(e["args"].get("op_name") for e in events if e.get("cat") == "Node")))
"""


def test_the_wheel_holds_the_package_and_no_more(wheel: Path) -> None:
    assert re.fullmatch(rf"dynorm_onnx-{__version__}-py3-none-(manylinux\w+\.)+whl", wheel.name), wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        data = f"dynorm_onnx-{__version__}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{data}/METADATA").decode())
    assert {name.split("/")[0] for name in names} == {"dynorm_onnx", data}  # no libraries were copied in
    assert {"dynorm_onnx/py.typed", "dynorm_onnx/libdynorm_ops.so", f"{data}/licenses/LICENSE"} <= set(names)
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Version"] == __version__
    assert not metadata.get_all("Project-URL")


def test_the_sdist_holds_what_the_package_is_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2]: member.size for member in archive.getmembers() if member.isfile()}
    assert {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "PKG-INFO"} <= set(files)
    assert {"custom_ops/CMakeLists.txt", "custom_ops/cuda_kernels.cu", "dynorm_onnx/report/html/page.css"} <= set(files)
    assert {name.split("/")[0] for name in files if "/" in name} == {"custom_ops", "dynorm_onnx"}
    assert sdist.stat().st_size < 1 << 20


def test_the_commands_are_there(installed: Environment) -> None:
    version = f"dynorm-onnx {__version__}\n"
    assert installed.stdout_of("dynorm-onnx", "--version") == version
    assert installed.stdout_of("python", "-m", "dynorm_onnx", "--version") == version
    where = installed.stdout_of(
        "python", "-c", "import dynorm_onnx; print(dynorm_onnx.__file__, dynorm_onnx.__version__)"
    )
    assert where.startswith(str(installed.programs.parent)) and where.split()[1] == __version__


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_module_is_a_command_too(command: tuple[str, str], installed: Environment) -> None:
    module = command[0].removesuffix(".__main__")
    assert installed.stdout_of("python", "-m", module, "--help").startswith(f"usage: python -m {module}")


def test_a_model_is_converted_and_run_by_the_library(installed: Environment) -> None:
    path, *providers = installed.stdout_of("python", "-c", WHERE).split()
    assert path.startswith(str(installed.programs.parent)) and "CPUExecutionProvider" in providers
    report = json.loads(installed.stdout_of("dynorm-onnx", *CONVERT))
    assert [site["status"] for site in report["sites"]] == ["converted"] * 9
    assert "converted-kernels" in {row["variant"] for row in report["timing"]}
    operators = json.loads(installed.stdout_of("python", "-c", RUN_BY_THE_LIBRARY))
    assert sum(count for name, count in operators.items() if name.endswith("DyISRU")) == 9


@pytest.fixture(scope="module")
def built_without(first_installed: Environment, sdist: Path) -> tuple[Path, str]:
    """A folder with the package as pip builds and installs it where no compiler is, and what that said."""
    folder = first_installed.folder / "without"
    install = ("install", "-v", "--no-deps", "--target", folder, sdist)
    return folder, first_installed.output_of("python", "-m", "pip", *install)


def test_without_a_compiler_the_package_is_installed_and_says_what_it_lacks(built_without: tuple[Path, str]) -> None:
    folder, said = built_without
    assert "built WITHOUT its custom-op library" in said and "/nonexistent/c++" in said
    assert f"dynorm_onnx-{__version__}-py3-none-any.whl" in said
    assert not list(folder.rglob("*.so"))


def test_without_the_library_models_run_by_their_function_bodies(
    built_without: tuple[Path, str], first_installed: Environment
) -> None:
    here = {"PYTHONPATH": str(built_without[0])}
    assert first_installed.stdout_of("python", "-c", WHERE, more=here).strip() == "None"
    convert = ("python", "-m", "dynorm_onnx", *CONVERT, "-o", "bodies.onnx")
    report = json.loads(first_installed.stdout_of(*convert, more=here))
    assert {row["variant"] for row in report["timing"]} == {"original", "original-fused", "converted"}
    register = "import onnxruntime as ort, dynorm_onnx.custom_ops as ops; ops.register(ort.SessionOptions())"
    refused = first_installed.run("python", "-c", register, more=here)
    assert refused.returncode and "installed without its custom-op library" in refused.stderr


def test_who_requires_the_library_gets_no_package_without_it(first_installed: Environment, sdist: Path) -> None:
    required = {"DYNORM_REQUIRE_LIBRARY": "1"}
    ran = first_installed.run("python", "-m", "pip", "wheel", "--no-deps", sdist, more=required)
    assert ran.returncode and "/nonexistent/c++" in ran.stdout + ran.stderr
    assert not list(first_installed.folder.glob("*.whl"))

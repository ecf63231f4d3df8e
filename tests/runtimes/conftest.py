"""What the tests of runtimes and tools share: the converted files, and whether docs/runtimes.md is written anew."""

from __future__ import annotations

import pytest

from tests.runtimes.subjects import Subjects, make


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known where these tests alone are asked for."""
    parser.addoption("--write", action="store_true", help="write what is found to docs/runtimes.md")


@pytest.fixture(scope="session")
def write(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--write", False))


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Subjects:
    return make(tmp_path_factory.mktemp("subjects"))

"""What all tests share: property tests draw the same examples in every run, and never time out on a busy machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _level_of_the_log() -> Iterator[None]:
    """A command sets how much the package logs; the next test may count on hearing what it asks caplog for."""
    logger = logging.getLogger("dynorm_onnx")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with a planted massive channel; not to be written to."""
    import onnx

    from models.planted.build import build

    path = tmp_path_factory.mktemp("planted") / "planted.onnx"
    onnx.save(build(), path)
    return path

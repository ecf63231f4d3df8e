"""What all tests share: property tests draw the same examples in every run, and never time out on a busy machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings


def _take_own_processors() -> None:
    """A worker of pytest-xdist to its share of the processors, before a library counts them for its threads: those of
    two workers wait for each other, spinning, and both take longer than one after the other."""
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) >= count:
        os.sched_setaffinity(0, processors[int(worker.removeprefix("gw")) :: count])


_take_own_processors()

settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _level_of_the_log() -> Iterator[None]:
    """A command sets how much the package logs; the next test may count on hearing what it asks caplog for."""
    logger = logging.getLogger("dynorm_onnx")
    level = logger.level
    yield
    if logger.level != level:
        logger.setLevel(level)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with a planted massive channel; not to be written to."""
    import onnx

    from models.planted.build import build

    path = tmp_path_factory.mktemp("planted") / "planted.onnx"
    onnx.save(build(), path)
    return path

"""A model larger than the memory that a conversion may take: everything at a sixteenth of the size of a real one."""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dynorm_onnx import convert_model
from dynorm_onnx.errors import NoMemoryError
from dynorm_onnx.runtime import pieces
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import FATAL, make_session
from models.large_llama.build import Shape, build

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits of private memory are Linux's"),
    pytest.mark.skipif((os.cpu_count() or 1) > 4, reason="the stacks of ONNX Runtime's threads count for more"),
]
MIB = 1 << 20
LARGE = Shape(layers=4, hidden=128, intermediate=40000, heads=4, key_heads=2, vocabulary=512)
TINY = dataclasses.replace(LARGE, layers=1, intermediate=128)
SIZE, ROOM = 117 * MIB, 96 * MIB
"""The large model has more than the one of weights, and its conversion may take the other."""
LIMITS = {"BATCHES_LIMIT": 4 * MIB, "WHOLE_LIMIT": 4 * MIB, "PIECE_LIMIT": 4 * MIB}
_MMAP_THRESHOLD = -3  # of mallopt(): from which size on memory is given back as soon as it is free


def convert(model: Path, knobs: dict[str, Any]) -> None:
    ids = np.random.default_rng(0).integers(0, LARGE.vocabulary, (4, 8))
    data = [{"input_ids": row[None]} for row in ids]
    report = convert_model(model, output=model.with_name("out.onnx"), data=data, samples=3, time=False, **knobs)
    assert report.with_status("converted")


def leave(room: int) -> None:
    """From here on this process may take so many bytes more of private memory."""
    import resource

    held = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (held + room, held + room))


def in_limits(large: Path, tiny: Path, knobs: dict[str, Any]) -> None:
    """The tiny model first, so that all that is imported is there."""
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, MIB)
    convert(tiny, knobs)
    for name, limit in LIMITS.items():
        setattr(pieces, name, limit)
    leave(ROOM)
    convert(large, knobs)


def with_nothing_left(model: Path, run_says: str, load_says: str) -> None:
    session = make_session(model.with_name("tiny.onnx"), log_severity=FATAL)
    leave(8 * MIB)
    with pytest.raises(NoMemoryError, match=run_says):
        run(session, {"input_ids": np.zeros((64, 512), np.int64)})
    with pytest.raises(NoMemoryError, match=load_says):
        make_session(model, log_severity=FATAL)


def in_a_copy_of_the_process(work: Callable[..., object], *arguments: object) -> int | None:
    """Its exit code."""
    copy = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    copy.start()
    copy.join()
    return copy.exitcode


def test_what_onnx_runtime_lacks_is_said(tmp_path: Path) -> None:
    build(TINY, tmp_path / "tiny.onnx")
    build(dataclasses.replace(LARGE, layers=1), tmp_path / "large.onnx")
    said = ("not enough memory to run the model: .*", "not enough memory to load .*large.onnx: .*")
    assert in_a_copy_of_the_process(with_nothing_left, tmp_path / "large.onnx", *said) == 0


@pytest.mark.parametrize(
    ("norms", "knobs"),
    [("rms", {"method": "fit", "rotate": False, "optimize": "none", "validate": False}), ("layer", {"to": "rmsnorm"})],
    ids=["fit", "rmsnorm"],
)
def test_a_model_larger_than_the_memory_is_converted(norms: str, knobs: dict[str, Any], tmp_path: Path) -> None:
    paths = []
    for name, shape in (("large", LARGE), ("tiny", TINY)):
        path = tmp_path / name / "model.onnx"
        path.parent.mkdir()
        build(dataclasses.replace(shape, norms=norms), path)
        paths.append(path)
    large, tiny = paths
    assert large.with_name("model.onnx.data").stat().st_size > SIZE > ROOM
    assert in_a_copy_of_the_process(in_limits, large, tiny, knobs) == 0
    onnx.checker.check_model(large.with_name("out.onnx"))

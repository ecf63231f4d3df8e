"""Whenever a run is killed, the old output or the new one is there; what dead runs leave behind goes with the next."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.files.placing import folder_beside, locations

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are copied: not on Windows")
ROWS = 20_000  # of weights, so that writing takes a while


def model(number: float) -> ir.Model:
    """y = x w + b, all of whose weights are one number; w goes to a file of its own."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[n, 20000] x) => (float[n, 8] y) '
        "{ m = MatMul(x, w) y = Add(m, b) }"
    )
    for name, shape in (("w", (ROWS, 8)), ("b", (8,))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full(shape, number, np.float32), name))
    return ir.from_proto(proto)


def numbers_in(path: Path) -> set[float]:
    """All that the weights of the model in place are made of."""
    loaded = onnx.load(path)
    return {float(x) for weight in loaded.graph.initializer for x in np.unique(onnx.numpy_helper.to_array(weight))}


def save(number: float, path: Path) -> None:
    model_io.save(model(number), path, external_above=1000)


def test_a_kill_leaves_one_whole_output(tmp_path: Path) -> None:
    output, random = tmp_path / "out.onnx", np.random.default_rng(0)
    save(1, output)
    seen = set()
    for _ in range(50):
        child = os.fork()
        if child == 0:
            number = 1.0
            while True:
                number += 1
                save(number, output)
        time.sleep(random.uniform(0.02, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        (number,) = numbers_in(output)
        seen.add(number)
    assert len(seen) > 1
    save(1, output)
    assert numbers_in(output) == {1}
    assert {file.name for file in tmp_path.iterdir()} <= {"out.onnx", "out.onnx.data", "out.onnx.1.data"}


def test_two_at_once_to_one_output(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    save(0, output)
    children = []
    for number in (1.0, 2.0):
        child = os.fork()
        if child == 0:
            for _ in range(15):
                save(number, output)
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert statuses == [0, 0]
    assert numbers_in(output) in ({1}, {2})


def test_weights_change_places(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    for number, name in ((1, "out.onnx.data"), (2, "out.onnx.1.data"), (3, "out.onnx.data")):
        save(number, output)
        assert {file.name for file in tmp_path.iterdir()} == {"out.onnx", name}
        assert locations(output) == {name} and numbers_in(output) == {number}


def test_the_folder_of_a_run_under_way_stays(tmp_path: Path) -> None:
    with folder_beside(tmp_path / "out.onnx") as first:
        with folder_beside(tmp_path / "out.onnx") as second:
            assert first != second and first.exists()
        assert first.exists() and not second.exists()
    assert not first.exists()


def test_what_only_looks_like_such_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / ".out.onnx.backups").mkdir()
    (tmp_path / ".out.onnx.backups" / "yesterday.onnx").touch()
    (tmp_path / ".out.onnx.a_dead_run").mkdir()
    (tmp_path / ".out.onnx.a_dead_run" / "out.onnx.data").touch()
    save(1, tmp_path / "out.onnx")
    assert {file.name for file in tmp_path.iterdir()} == {".out.onnx.backups", "out.onnx", "out.onnx.data"}


def test_one_waits_for_the_other(tmp_path: Path) -> None:
    """Placing is done by one process or thread at a time in a folder."""
    output = tmp_path / "out.onnx"
    save(0, output)
    threads = [threading.Thread(target=save, args=(number, output)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(numbers_in(output)) == 1 and numbers_in(output) <= {1, 2, 3}

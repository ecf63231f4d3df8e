"""The library under load: many threads, many sessions, forked processes. sanitize.py does so in C++."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import resource
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from dynorm_onnx import custom_ops
from dynorm_onnx.runtime.arrays import Feeds, run
from tests.custom_ops.nodes import NUMPY_TYPE, Node, model_of, model_of_all

RUNS = 1000
LONG = 700  # rows of 48 channels: enough to be shared out among threads
can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked on this system")


def session_of(model: bytes, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    custom_ops.register(options)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def every_operator() -> bytes:
    """Every operator in every type."""
    return model_of_all().SerializeToString()


def feeds_of(index: int) -> Feeds:
    """Inputs of their own for every index; one in a hundred is long."""
    random = np.random.default_rng(index)
    rows = LONG if index % 100 == 0 else 1 + index % 7
    values = {name: 3 * random.standard_normal((rows, 48), np.float32) for name in ("x", "skip")}
    return {f"{name}_{key}": value.astype(dtype) for name, value in values.items() for key, dtype in NUMPY_TYPE.items()}


def digest_of(outputs: Feeds) -> bytes:
    """Of the bits of all outputs."""
    digest = hashlib.sha256()
    for output in outputs.values():
        digest.update(output.tobytes())
    return digest.digest()


def answer(session: ort.InferenceSession, index: int) -> bytes:
    return digest_of(run(session, feeds_of(index)))


@pytest.fixture(scope="module")
def answers_of_one_thread(every_operator: bytes) -> list[bytes]:
    session = session_of(every_operator)
    return [answer(session, index) for index in range(RUNS)]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_thousand_runs_at_once_give_the_bits_of_one_thread(
    every_operator: bytes, answers_of_one_thread: list[bytes], threads: int
) -> None:
    """A thread for every run, all let go at the same moment; the session has one thread of its own, or two."""
    assert len(set(answers_of_one_thread)) == RUNS
    session = session_of(every_operator, threads)
    answers: list[bytes | None] = [None] * RUNS
    ready = threading.Barrier(RUNS)

    def ask(index: int) -> None:
        feeds = feeds_of(index)
        ready.wait()
        answers[index] = digest_of(run(session, feeds))

    workers = [threading.Thread(target=ask, args=(index,)) for index in range(RUNS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert answers == answers_of_one_thread


def test_sessions_made_and_destroyed_by_many_threads_at_once() -> None:
    """Each registers the library, and makes, runs and destroys a session."""
    node = Node("SkipCoupledDerf")
    model, feeds = model_of(node).SerializeToString(), node.feeds(2, 3)
    expected = session_of(model).run(None, feeds)
    with ThreadPoolExecutor(8) as pool:
        for outputs in pool.map(lambda _: session_of(model).run(None, feeds), range(200)):
            np.testing.assert_array_equal(outputs, expected)


def resident() -> int:
    """Bytes of this process's memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_sessions_that_were_made() -> None:
    """Below 4 KiB a session: an operator's table alone has 264 bytes, and there are 48 of them at least.

    Three hundred sessions without the library take some 10 KiB in all, once the first hundred have been made.
    """
    node = Node("SkipCoupledDerf", channels=768)
    model, feeds = model_of(node).SerializeToString(), node.feeds(2, 3)

    def make_and_destroy(count: int) -> None:
        for _ in range(count):
            session_of(model).run(None, feeds)

    make_and_destroy(100)
    before = resident()
    make_and_destroy(300)
    assert resident() - before < 300 * 4096


def in_child(work: Callable[[], Any]) -> None:
    """Does the work in a fork of this process, which must come to its end within a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads in the parent
        child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(60)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    assert ended == 0, f"the child ended with {os.waitstatus_to_exitcode(ended)}"


@can_fork
def test_a_session_of_the_parent_runs_in_its_children(every_operator: bytes) -> None:
    """With one thread: more, which ONNX Runtime starts with the session, no child inherits."""
    session = session_of(every_operator)
    expected = [answer(session, index) for index in range(3)]

    def work() -> None:
        assert [answer(session, index) for index in range(3)] == expected

    for _ in range(3):
        in_child(work)
    assert [answer(session, index) for index in range(3)] == expected


@can_fork
@pytest.mark.parametrize("threads", [1, 2])
def test_children_make_sessions_of_their_own(every_operator: bytes, threads: int) -> None:
    """The library is loaded and registered in the parent, and a session was run there."""
    expected = [answer(session_of(every_operator, threads), index) for index in range(2)]

    def work() -> None:
        session = session_of(every_operator, threads)
        assert [answer(session, index) for index in range(2)] == expected

    for _ in range(3):
        in_child(work)


def answer_in_a_worker(model_and_index: tuple[bytes, int]) -> bytes:
    model, index = model_and_index
    return answer(session_of(model, 2), index)


@can_fork
def test_a_pool_of_forked_workers(every_operator: bytes) -> None:
    session = session_of(every_operator)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map_async(answer_in_a_worker, [(every_operator, index) for index in range(16)]).get(timeout=120)
    assert found == [answer(session, index) for index in range(16)]

"""A real Ray cluster of two nodes: the outputs of a local session, and no request lost when replica and node die."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dynorm_onnx import session
from dynorm_onnx.serving.load import measure_latency
from dynorm_onnx.serving.ray_serve import RayDeployment, write_ray_application
from tests.serving import ray_cluster
from tests.serving.hammer import crew
from tests.serving.hammer.http_cut import cut_kinds
from tests.serving.hammer.http_good import good_kinds
from tests.serving.hammer.http_malformed import malformed_kinds
from tests.serving.hammer.known import KnownAnswers
from tests.serving.hammer.tally import Tally
from tests.tolerances import TOLERANCE, relative_error

why_not = ray_cluster.missing()
pytestmark = pytest.mark.skipif(why_not is not None, reason=str(why_not))

BATCHED = 10 * TOLERANCE["float32"]  # a batch joined by the server sums in another order than a single request
LONGEST = 64
PATIENCE = 240  # seconds, for what takes a second or two on a free machine


@pytest.fixture(scope="module")
def served(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ray_cluster.RayCluster, str]]:
    """(the cluster, host:port) of the converted model: one replica, two when requests come one behind the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    deployment = RayDeployment(replicas=(1, 2), queue_length=0.2, max_delay_us=5000, listen=address)
    config = write_ray_application(
        converted,
        tmp_path_factory.mktemp("ray") / "app",
        "lm",
        deployment=deployment,
        max_batch_size=4,
        max_length=LONGEST,
    )
    quick = re.sub(r"(metrics_interval_s|upscale_delay_s): .*", r"\1: 0.5", config.read_text())
    quick = re.sub(r"(look_back_period_s|health_check_period_s): .*", r"\1: 1.0", quick)
    config.write_text(quick)
    host = f"127.0.0.1:{address[1]}"
    with ray_cluster.running() as cluster:
        cluster.deploy(config, f"http://{host}")
        yield cluster, host


def ask(host: str, ids: np.ndarray, *, binary: bool = True) -> np.ndarray:
    http = pytest.importorskip("tritonclient.http", reason="pip install 'dynorm-onnx[serving]'")
    with http.InferenceServerClient(host, connection_timeout=5, network_timeout=60) as client:
        tensor = http.InferInput("input_ids", list(ids.shape), "INT64")
        tensor.set_data_from_numpy(ids, binary_data=binary)
        outputs = [http.InferRequestedOutput("logits", binary_data=binary)]
        return client.infer("lm", [tensor], outputs=outputs).as_numpy("logits")


def ask_until_answered(host: str, ids: np.ndarray, refused: list[str]) -> np.ndarray:
    """Ask again where HTTP lets a client do so.

    A POST may be repeated where it is known to be idempotent (RFC 9110, 9.2.2), as inference is. What is repeated: a
    request whose connection failed; one that was answered 503; and one that Serve's proxy, having lost the replica,
    answered 500 without words in JSON. The application's own refusals have a JSON body, and are final.
    """
    from geventhttpclient.response import HTTPConnectionClosed
    from tritonclient.utils import InferenceServerException

    end = time.monotonic() + PATIENCE
    while True:
        try:
            return ask(host, ids)
        except (OSError, HTTPConnectionClosed, InferenceServerException) as error:
            status = error.status() if isinstance(error, InferenceServerException) else None
            wordless = "while decoding" in str(error) or "empty response" in str(error)
            lost = status in (None, "503") or (status == "500" and wordless)
            if not lost or time.monotonic() > end:
                raise
            refused.append(f"{type(error).__name__} {status}")
            time.sleep(0.1)


def test_outputs_are_those_of_a_session(served: tuple[ray_cluster.RayCluster, str], converted: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 256, (3, 40))
    local = session(converted, threads=1).run(["logits"], {"input_ids": ids})[0]
    assert relative_error(ask(served[1], ids), local) <= TOLERANCE["float32"]
    assert relative_error(ask(served[1], ids, binary=False), local) <= TOLERANCE["float32"]


def test_the_same_client_measures_it(served: tuple[ray_cluster.RayCluster, str]) -> None:
    (row,) = measure_latency(["lm"], protocol="http", url=served[1], shape=(1, 16), concurrency=2, seconds=0.4)
    assert row.requests >= 2 and 0 < row.median_ms <= row.p99_ms


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (np.full((1, 4), 99_999), "out of data bounds"),
        (np.full((5, 4), 65), "5 samples are more than max_batch_size, 4"),
        (np.full((1, 4), -257), r"out of data bounds.* \(of 'input_ids' int64 \[1, 4\]\)"),
        (np.full((4,), 65), "has the shape"),
        (np.full((1, LONGEST + 1), 65), r"has the shape \[1, 65\], and no axis may be longer than max_length, 64"),
    ],
    ids=["index", "samples", "below", "rank", "long"],
)
def test_refusals_are_sentences(served: tuple[ray_cluster.RayCluster, str], ids: np.ndarray, said: str) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match=said) as caught:
        ask(served[1], ids)
    assert caught.value.status() == "400"


def test_whatever_makes_no_sense_is_refused_and_the_next_answered(
    served: tuple[ray_cluster.RayCluster, str], converted: Path
) -> None:
    known, path, rng = KnownAnswers(converted, count=16), "/v2/models/lm/infer", np.random.default_rng(0)
    kinds = malformed_kinds(served[1], path, known) | cut_kinds(served[1], path, known)
    tally = Tally()
    for name, send in (kinds | good_kinds(served[1], path, known, compressed=False)).items():
        crew.one(tally, name, send, rng)
    assert not tally.faults
    assert tally.good() == 3


def test_what_is_joined_is_told_apart(served: tuple[ray_cluster.RayCluster, str], converted: Path) -> None:
    from tritonclient.utils import InferenceServerException

    rng = np.random.default_rng(2)
    requests = [rng.integers(0, 256, (1 + i % 2, 8 + 4 * (i % 3 == 0))) for i in range(16)]
    requests[5][0, 0] = 99_999  # a run with this one in it fails; those that came with it must not
    local = session(converted, threads=1)

    def answer(ids: np.ndarray) -> np.ndarray | str:
        try:
            return ask(served[1], ids)
        except InferenceServerException as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, requests))
    refused = answers.pop(5)
    assert isinstance(refused, str) and "out of data bounds" in refused
    del requests[5]
    for ids, logits in zip(requests, answers, strict=True):
        assert not isinstance(logits, str), logits
        assert relative_error(logits, local.run(["logits"], {"input_ids": ids})[0]) <= BATCHED


def test_a_model_that_is_not_there(served: tuple[ray_cluster.RayCluster, str]) -> None:
    from tritonclient.http import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    with InferenceServerClient(served[1]) as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("lm")
        assert not client.is_model_ready("other")
        assert client.get_model_metadata("lm")["outputs"][0]["datatype"] == "FP32"
        with pytest.raises(InferenceServerException, match="there is no model 'other' here, but 'lm'"):
            client.get_model_metadata("other")


def test_no_request_is_lost_when_a_replica_and_then_a_node_die(
    served: tuple[ray_cluster.RayCluster, str], converted: Path
) -> None:
    cluster, host = served
    rng = np.random.default_rng(1)
    answers: list[tuple[np.ndarray, np.ndarray]] = []
    refused: list[str] = []
    broken: list[BaseException] = []
    hurry, stop = threading.Event(), threading.Event()

    def client() -> None:
        try:
            while not stop.is_set():
                ids = rng.integers(0, 256, (1, 24))
                answers.append((ids, ask_until_answered(host, ids, refused)))
                hurry.wait(0.2)  # while replicas start, which takes the processors that clients would take
        except BaseException as error:  # a request was lost: told by the test below
            broken.append(error)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for each in clients:
        each.start()
    try:
        # the queue brings a second replica, on the node that has room for it
        replicas = {node: cluster.replicas(node) for node in (cluster.nodes.head_node, cluster.worker)}
        (first,) = (node for node, pids in replicas.items() if pids)
        (other,) = (node for node, pids in replicas.items() if not pids)
        until(lambda: cluster.replicas(other), broken)
        hurry.set()
        more(answers, broken)
        for pid in replicas[first]:
            os.kill(pid, signal.SIGKILL)
        more(answers, broken)
        hurry.clear()
        until(lambda: cluster.replicas(first) - replicas[first], broken)
        hurry.set()
        more(answers, broken)
        cluster.end_worker()
        more(answers, broken)
    finally:
        stop.set()
        for each in clients:
            each.join(2 * PATIENCE)
    assert not broken
    assert not any(each.is_alive() for each in clients)
    local = session(converted, threads=1)
    for ids, answer in answers:
        assert relative_error(answer, local.run(["logits"], {"input_ids": ids})[0]) <= BATCHED
    assert refused  # some did meet a dead replica or node


def until(happened: Callable[[], object], broken: list[BaseException]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert not broken and time.monotonic() < end
        time.sleep(0.1)


def more(answers: list, broken: list[BaseException], count: int = 30) -> None:
    """Wait until so many further requests are answered."""
    wanted = len(answers) + count
    until(lambda: len(answers) >= wanted, broken)

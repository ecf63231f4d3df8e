"""A real Triton server: the same outputs as a local session, over HTTP and gRPC, under concurrent load."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from dynorm_onnx import session
from dynorm_onnx.errors import DataError
from dynorm_onnx.runtime.session import make_session
from dynorm_onnx.serving.load import measure_latency
from dynorm_onnx.serving.triton import write_triton_model
from tests.serving import server
from tests.shipped import MODEL
from tests.tolerances import TOLERANCE, relative_error

why_not = server.missing()
pytestmark = pytest.mark.skipif(why_not is not None, reason=str(why_not))

# a batch joined by the server sums in another order than a single request
BATCHED = 10 * TOLERANCE["float32"]
FUTURE = "from __future__ import annotations\n"  # must come first, and this file's program is put behind other lines

TYPES = """
<ir_version: 10, opset_import: ["" : 21]>
types (bool[N, 3] flag, float16[N, 2] half, uint8[N] byte) =>
      (bool[N, 3] other, float16[N, 2] twice, uint8[N] same) {
  other = Not(flag)
  twice = Add(half, half)
  same = Identity(byte)
}
"""
SCALARS = """
<ir_version: 10, opset_import: ["" : 21]>
scalars (double scale, double[N] x) => (double total, double[N] y) {
  total = ReduceSum<keepdims = 0>(x)
  y = Mul(x, scale)
}
"""


SUMS = """
<ir_version: 10, opset_import: ["" : 21]>
sums (float[N, 2] x) => (float[M, 2] y) { axes = Constant<value_ints = [0]>()  y = ReduceSum(x, axes) }
"""
LONGEST = 32  # of "bounded"


@pytest.fixture(scope="module")
def served(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Server]:
    folder = tmp_path_factory.mktemp("triton")
    repository = folder / "models"
    write_triton_model(MODEL, repository, "original", backend="python", threads=1)
    # long enough that requests do meet in a batch
    write_triton_model(converted, repository, "converted", backend="python", threads=1, max_delay_us=20_000)
    write_triton_model(converted, repository, "bodies", backend="python", threads=1, library=False)
    write_triton_model(
        converted,
        repository,
        "bounded",
        backend="python",
        threads=1,
        max_delay_us=50_000,
        max_length=LONGEST,
    )
    write_triton_model(converted, repository, "poor", backend="python", threads=1, max_memory_mib=256)
    for name, text in (("types", TYPES), ("scalars", SCALARS), ("sums", SUMS)):
        onnx.save(parser.parse_model(text), folder / f"{name}.onnx")
        batch = {"max_batch_size": 4, "max_delay_us": 50_000} if name == "sums" else {}
        write_triton_model(folder / f"{name}.onnx", repository, backend="python", **batch)
    program = write_triton_model(converted, repository, "alone", backend="python", threads=1) / "1" / "model.py"
    program.write_text(f"import sys\nsys.modules['dynorm_onnx'] = None\n{program.read_text()}".replace(FUTURE, ""))
    with server.serving(repository, folder) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> ModuleType:
    return pytest.importorskip(f"tritonclient.{request.param}")


@contextlib.contextmanager
def client_of(protocol: ModuleType, served: server.Server) -> Iterator[Any]:
    url = served.http if protocol.__name__.endswith("http") else served.grpc
    client = protocol.InferenceServerClient(url)
    try:
        yield client
    finally:  # a server waits for its clients before it stops
        client.close()


def ask(protocol: ModuleType, served: server.Server, model: str, feeds: dict[str, np.ndarray]) -> Any:
    with client_of(protocol, served) as client:
        return infer(protocol, client, model, feeds)


def infer(protocol: ModuleType, client: Any, model: str, feeds: dict[str, np.ndarray]) -> Any:
    from tritonclient.utils import np_to_triton_dtype

    inputs = []
    for name, array in feeds.items():
        inputs.append(protocol.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return (
        client.infer(model, inputs, client_timeout=30) if "grpc" in protocol.__name__ else client.infer(model, inputs)
    )


def test_sessions_are_ours_where_we_can_be_imported(served: server.Server) -> None:
    opened = re.findall(r"models/(\w+)/1/model.onnx: opened by (dynorm_onnx|plain)", served.log.read_text())
    names = ("original", "converted", "bodies", "bounded", "poor", "types", "scalars", "sums")
    ours = dict.fromkeys(names, "dynorm_onnx")
    assert dict(opened) == ours | {"alone": "plain"}


@pytest.mark.parametrize("name", ["original", "converted", "bodies", "alone"])
def test_answers_are_those_of_a_local_session(
    served: server.Server, converted: Path, protocol: ModuleType, name: str
) -> None:
    path = MODEL if name == "original" else converted
    local = make_session(path, threads=1, kernels=False) if name == "bodies" else session(path, threads=1)
    ids = np.random.default_rng(0).integers(0, 256, (3, 40))
    answer = ask(protocol, served, name, {"input_ids": ids}).as_numpy("logits")
    assert answer.shape == (3, 40, 256)
    assert relative_error(answer, local.run(None, {"input_ids": ids})[0]) <= TOLERANCE["float32"]


def test_concurrent_requests_each_get_their_own_answer(
    served: server.Server, converted: Path, protocol: ModuleType
) -> None:
    rng = np.random.default_rng(1)
    requests = [rng.integers(0, 256, (1 + i % 2, 24)) for i in range(32)]
    local = session(converted, threads=1)

    def logits(ids: np.ndarray) -> np.ndarray:
        return ask(protocol, served, "converted", {"input_ids": ids}).as_numpy("logits")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(logits, requests))
    for ids, answer in zip(requests, answers, strict=True):
        assert relative_error(answer, local.run(None, {"input_ids": ids})[0]) <= BATCHED


def test_requests_were_joined(served: server.Server, protocol: ModuleType) -> None:
    feeds = {"input_ids": np.full((1, 16), 65, np.int64)}
    with client_of(protocol, served) as client:
        before = executions(client)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: ask(protocol, served, "converted", feeds), range(24)))
        until = time.monotonic() + 20  # the server counts an answer after it has sent it
        while executions(client)[0] - before[0] < 24 and time.monotonic() < until:
            time.sleep(0.05)
        asked, ran = (after - start for after, start in zip(executions(client), before, strict=True))
    assert asked == 24
    assert ran < asked


def executions(client: Any) -> tuple[int, int]:
    """(samples answered, runs of the model) so far."""
    if "http" in type(client).__module__:
        stats = client.get_inference_statistics("converted")["model_stats"][0]
        return int(stats["inference_count"]), int(stats["execution_count"])
    stats = client.get_inference_statistics("converted").model_stats[0]
    return stats.inference_count, stats.execution_count


def test_every_type_of_tensor_goes_through(served: server.Server, protocol: ModuleType) -> None:
    feeds = {
        "flag": np.array([[True, False, True], [False, False, True]]),
        "half": np.array([[1.5, -2.0], [0.25, 3.0]], np.float16),
        "byte": np.array([[255], [7]], np.uint8),  # dims must not be empty, so there is an axis that the model has not
    }
    answer = ask(protocol, served, "types", feeds)
    np.testing.assert_array_equal(answer.as_numpy("other"), ~feeds["flag"])
    np.testing.assert_array_equal(answer.as_numpy("twice"), 2 * feeds["half"])
    np.testing.assert_array_equal(answer.as_numpy("same"), feeds["byte"])


def test_scalars_go_as_one_element(served: server.Server, protocol: ModuleType) -> None:
    feeds = {"scale": np.array([0.5]), "x": np.array([1.0, 2.0, 4.0])}
    answer = ask(protocol, served, "scalars", feeds)
    np.testing.assert_array_equal(answer.as_numpy("y"), [0.5, 1.0, 2.0])
    np.testing.assert_array_equal(answer.as_numpy("total"), [7.0])


def test_a_request_that_the_model_refuses_spoils_no_other(served: server.Server, protocol: ModuleType) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match=r"(?i)out of|index"):
        ask(protocol, served, "original", {"input_ids": np.full((1, 4), 99_999)})
    answer = ask(protocol, served, "original", {"input_ids": np.full((1, 4), 65)})
    assert answer.as_numpy("logits").shape == (1, 4, 256)


def test_one_bad_request_of_a_batch_spoils_no_other(
    served: server.Server, converted: Path, protocol: ModuleType
) -> None:
    from tritonclient.utils import InferenceServerException

    rng = np.random.default_rng(3)
    requests = [rng.integers(0, 256, (1, 12)) for _ in range(16)]
    requests[3][0, 5] = 99_999
    requests[9] = rng.integers(0, 256, (1, LONGEST + 1))

    def answer(ids: np.ndarray) -> np.ndarray | str:
        try:
            return ask(protocol, served, "bounded", {"input_ids": ids}).as_numpy("logits")
        except InferenceServerException as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, requests))
    outside, long = answers[3], answers[9]
    assert isinstance(outside, str) and "idx=99999" in outside and "'input_ids' int64 [1, 12]" in outside
    assert isinstance(long, str) and f"has the shape [1, {LONGEST + 1}], and no axis may be longer" in long
    local = session(converted, threads=1)
    for number in set(range(16)) - {3, 9}:
        assert not isinstance(answers[number], str), answers[number]
        right = local.run(None, {"input_ids": requests[number]})[0]
        assert relative_error(answers[number], right) <= BATCHED


def test_what_there_is_no_memory_for_is_refused(served: server.Server, protocol: ModuleType) -> None:
    """The scores of all heads for 6000 tokens are 0.7 GiB, and "poor" may take a third of that."""
    from tritonclient.utils import InferenceServerException

    bounds = [int(mebibytes) for mebibytes in re.findall(r"requests may take (\d+) MiB", served.log.read_text())]
    assert bounds.count(256) == 1 and len(bounds) == 9  # all others may take what is free
    with pytest.raises(InferenceServerException, match=r"(allocate memory|bad_alloc).*'input_ids' int64 \[1, 6000\]"):
        ask(protocol, served, "poor", {"input_ids": np.full((1, 6000), 65)})
    answer = ask(protocol, served, "poor", {"input_ids": np.full((1, 100), 65)})
    assert answer.as_numpy("logits").shape == (1, 100, 256)


def test_outputs_that_no_batch_can_be_told_from_are_computed_alone(served: server.Server, protocol: ModuleType) -> None:
    rows = [np.full((1, 2), value, np.float32) for value in range(12)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda x: ask(protocol, served, "sums", {"x": x}).as_numpy("y"), rows))
    np.testing.assert_array_equal(answers, rows)


def test_an_answer_leaves_no_word_in_the_log(served: server.Server, protocol: ModuleType) -> None:
    before = served.log.stat().st_size
    for _ in range(3):
        ask(protocol, served, "original", {"input_ids": np.full((1, 4), 65)})
    assert served.log.stat().st_size == before


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_latency_under_load(served: server.Server, kind: str) -> None:
    rows = measure_latency(
        ["original", "converted"], protocol=kind, url=getattr(served, kind), shape=(1, 32), concurrency=3, seconds=0.4
    )
    assert [row.model for row in rows] == ["original", "converted"]
    for row in rows:
        assert (row.protocol, row.concurrency) == (kind, 3)
        assert row.requests >= 3 and row.per_second > 0
        assert 0 < row.median_ms <= row.p90_ms <= row.p99_ms
    with pytest.raises(DataError, match=r"the server at .* refuses 'nobody'"):
        measure_latency(["nobody"], protocol=kind, url=getattr(served, kind), seconds=0.1)

"""Triton with the Python backend under everything at once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from dynorm_onnx.serving.triton import write_triton_model
from tests.serving import server
from tests.serving.hammer import crew
from tests.serving.hammer.grpc_kinds import Grpc
from tests.serving.hammer.http_cut import cut_kinds, large_kinds
from tests.serving.hammer.http_good import Send, good_kinds
from tests.serving.hammer.http_malformed import malformed_kinds
from tests.serving.hammer.known import KnownAnswers
from tests.serving.hammer.tally import Tally
from tests.serving.hammer.verdict import Hammered, judged
from tests.serving.hammer.watch import Watch, children

NAME = "lm"
PATH = f"/v2/models/{NAME}/infer"
LONGEST = 512  # --max-length
LARGE_PAUSE_S = 2.0
MESSAGE_MIB = 2  # over gRPC


def hammer(model: Path, seconds: float, mebibytes: int) -> Hammered:
    """Serve the model for so long, with bodies of up to so many MiB."""
    known = KnownAnswers(model, longest=(300, LONGEST))
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        write_triton_model(model, repository, NAME, backend="python", threads=1, max_length=LONGEST, max_delay_us=2000)
        with server.serving(repository, Path(folder)) as running:
            return _hammered(running, known, seconds, mebibytes)


def _hammered(running: server.Server, known: KnownAnswers, seconds: float, mebibytes: int) -> Hammered:
    tally = Tally()
    check(running, known, tally, "before")
    warm_up(running, known, tally, mebibytes)
    stubs = {f"model process {n}": pid for n, pid in enumerate(children(running.process))}
    watch = Watch({"server": running.process, **stubs}, running.shared)
    watch.start()
    pauses = [0.0, 0.0, 0.0, 0.01, 0.01, 0.05, LARGE_PAUSE_S]
    crew.work(tally, list(_crew(running, known, mebibytes)), pauses, seconds)
    watch.stop()
    check(running, known, tally, "after")
    time.sleep(3.0)
    watch.look()
    vast_message(running, known, tally, mebibytes)
    check(running, known, tally, "after all")
    made = judged(tally, watch)
    tracebacks = running.log.read_text(errors="replace").count("Traceback")
    if tracebacks:
        made.faults.append(f"{tracebacks} tracebacks in the server's log")
    return made


def check(running: server.Server, known: KnownAnswers, tally: Tally, when: str) -> None:
    """Good requests of every kind with nothing beside them."""
    rng = np.random.default_rng(0)
    client = Grpc(running.grpc, NAME, known)
    kinds = good_kinds(running.http, PATH, known, compressed=True) | client.good()
    for name, send in kinds.items():
        for _ in range(5):
            crew.one(tally, f"{when}: {name}", send, rng)
    client.close()


def vast_message(running: server.Server, known: KnownAnswers, tally: Tally, mebibytes: int) -> None:
    """One of the largest bodies over gRPC. Not among the others: each of the eight states of Triton's gRPC server keeps
    the memory of the last message that it had, and growth by anything else would not be seen beside that."""
    client = Grpc(running.grpc, NAME, known)
    for name, send in client.large(LONGEST, mebibytes).items():
        crew.one(tally, f"after: {name}, {mebibytes} MiB", send, np.random.default_rng(0))
    client.close()


def warm_up(running: server.Server, known: KnownAnswers, tally: Tally, mebibytes: int) -> None:
    """The largest requests once, so that no pool of memory is as small as before any."""
    rng = np.random.default_rng(1)
    client = Grpc(running.grpc, NAME, known)
    kinds = large_kinds(running.http, PATH, LONGEST, mebibytes) | client.large(LONGEST, MESSAGE_MIB)
    for name, send in kinds.items():
        crew.one(tally, f"before: {name}", send, rng)
    client.close()


def _crew(running: server.Server, known: KnownAnswers, mebibytes: int) -> Iterator[crew.Member]:
    http = running.http

    def good_http() -> tuple[Mapping[str, Send], Callable[[], None]]:
        return good_kinds(http, PATH, known, compressed=True), lambda: None

    def of_grpc(kinds: Callable[[Grpc], Mapping[str, Send]]) -> crew.Member:
        def member() -> tuple[Mapping[str, Send], Callable[[], None]]:
            client = Grpc(running.grpc, NAME, known)
            return kinds(client), client.close

        return member

    yield good_http
    yield good_http
    yield of_grpc(Grpc.good)
    malformed = malformed_kinds(http, PATH, known)
    yield lambda: (malformed, lambda: None)
    yield of_grpc(Grpc.malformed)
    yield of_grpc(lambda client: cut_kinds(http, PATH, known) | client.cut())
    yield of_grpc(lambda client: large_kinds(http, PATH, LONGEST, mebibytes) | client.large(LONGEST, MESSAGE_MIB))

"""The Ray Serve application under everything that comes over HTTP."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from dynorm_onnx.serving.ray_serve import RayDeployment, write_ray_application
from tests.serving import ray_cluster
from tests.serving.hammer import crew
from tests.serving.hammer.http_cut import cut_kinds, large_kinds
from tests.serving.hammer.http_good import Send, good_kinds
from tests.serving.hammer.http_malformed import malformed_kinds
from tests.serving.hammer.known import KnownAnswers
from tests.serving.hammer.tally import Tally
from tests.serving.hammer.verdict import Hammered, judged
from tests.serving.hammer.watch import Watch

NAME, LONGEST = "lm", 512
PATH = f"/v2/models/{NAME}/infer"
LARGE_PAUSE_S = 2.0


def hammer(model: Path, seconds: float, mebibytes: int) -> Hammered:
    """Serve the model by one replica for so long, with bodies of up to so many MiB."""
    known = KnownAnswers(model, longest=(300, LONGEST))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    deployment = RayDeployment(replicas=(1, 1), max_delay_us=2000, listen=address)
    with tempfile.TemporaryDirectory() as folder, ray_cluster.running() as cluster:
        config = write_ray_application(model, Path(folder) / "app", NAME, deployment=deployment, max_length=LONGEST)
        http = f"127.0.0.1:{address[1]}"
        cluster.deploy(config, f"http://{http}")
        return _hammered(cluster, http, known, seconds, mebibytes)


def _hammered(
    cluster: ray_cluster.RayCluster, http: str, known: KnownAnswers, seconds: float, mebibytes: int
) -> Hammered:
    tally, rng = Tally(), np.random.default_rng(0)
    good = good_kinds(http, PATH, known, compressed=False)
    malformed, cut = malformed_kinds(http, PATH, known), cut_kinds(http, PATH, known)
    large = large_kinds(http, PATH, LONGEST, mebibytes)
    for name, send in (good | large).items():
        crew.one(tally, f"before: {name}", send, rng)
    replicas = {pid for node in (cluster.nodes.head_node, cluster.worker) for pid in cluster.replicas(node)}
    processes = {f"replica {pid}": pid for pid in replicas} | {f"proxy {pid}": pid for pid in cluster.proxies()}
    watch = Watch(processes, None)
    watch.start()
    kinds = [good, good, good, malformed, cut, large]
    crew.work(tally, [_member(each) for each in kinds], [0.0, 0.0, 0.0, 0.01, 0.05, LARGE_PAUSE_S], seconds)
    watch.stop()
    for name, send in good.items():
        crew.one(tally, f"after: {name}", send, rng)
    time.sleep(5.0)
    watch.look()
    return judged(tally, watch)


def _member(kinds: Mapping[str, Send]) -> Callable[[], tuple[Mapping[str, Send], Callable[[], None]]]:
    return lambda: (kinds, lambda: None)

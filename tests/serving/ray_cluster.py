"""A Ray cluster of two nodes on this machine, started and stopped with all of its processes.

To try an application by hand:

    python -m tests.serving.ray_cluster APP/serve.yaml
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest.mock
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEPLOY_SECONDS, READY_SECONDS = 180, 180
_MARK = "DYNORM_TEST_CLUSTER"  # in the environment of every process that a cluster starts, however it was started
# a dead node is known as such after five seconds, not after half a minute
_SYSTEM = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # by itself 15: replicas then starve beside anything else that runs
    "RAY_worker_niceness": "0",
    # a proxy that gets no processor for seconds, on a busy machine, is not to be replaced
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}


def missing() -> str | None:
    """Why no cluster can be started here, with what to install; None if one can."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("ray.serve") is None:
        return "Ray Serve is not installed: pip install 'dynorm-onnx[ray]'"
    return None


class RayCluster:
    """A head and a worker, each with processors for so many replicas of one."""

    def __init__(self, cpus: int) -> None:
        from ray.cluster_utils import Cluster

        each = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False, "num_cpus": cpus}
        self.nodes = Cluster(shutdown_at_exit=False)
        self.nodes.add_node(**each, _system_config=_SYSTEM)
        self.worker: Any = self.nodes.add_node(**each)

    def deploy(self, config: Path, url: str) -> None:
        """`serve run`, until the server at the url says that it is ready."""
        command = [sys.executable, "-m", "ray.serve.scripts", "run", str(config), "--non-blocking"]
        said = subprocess.run(
            [*command, "--address", self.nodes.address], capture_output=True, text=True, timeout=DEPLOY_SECONDS
        )
        assert said.returncode == 0, said.stdout + said.stderr
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"the application did not become ready:\n{said.stdout}{said.stderr}")

    def replicas(self, node: Any) -> set[int]:
        """The processes of Serve's replicas on a node, children of its raylet, that are done with their start."""
        return {pid for pid in _family(_raylets(node)) if _is_replica(_command(pid))}

    def proxies(self) -> set[int]:
        """The processes that take HTTP requests."""
        pids = {pid for node in (self.nodes.head_node, self.worker) for pid in _family(_raylets(node))}
        return {pid for pid in pids if "ProxyActor" in _command(pid)}

    def end_worker(self) -> None:
        """As if the machine's power were cut: no process of the worker has time for a word."""
        _kill(_family(_raylets(self.worker)))
        self.nodes.remove_node(self.worker, allow_graceful=False)


@contextlib.contextmanager
def running(cpus: int = 1) -> Iterator[RayCluster]:
    """A cluster that is gone, with every process that it started, when the block ends in whatever way."""
    mark = f"{_MARK}={uuid.uuid4().hex}"
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets lie in it, whose paths have a hundred bytes
    search = os.pathsep.join(path for path in (str(Path.cwd()), *sys.path) if path)
    told = dict([mark.split("=")]) | _ENVIRONMENT | {"RAY_TMPDIR": str(folder), "PYTHONPATH": search}
    with unittest.mock.patch.dict(os.environ, told):
        (folder / "ray").mkdir()
        try:
            yield RayCluster(cpus)
        finally:
            _end(mark)
            shutil.rmtree(folder, ignore_errors=True)


def _end(mark: str) -> None:
    """Kill what carries the mark, and its descendants: some of them write over their environment."""
    known: set[int] = set()
    for _ in range(100):  # what starts another while we look is seen the next time
        known |= _family(_marked(mark))
        left = {pid for pid in known if _command(pid)}  # one that has ended has none
        if not left:
            return
        _kill(left)
        time.sleep(0.05)
    raise AssertionError(f"processes of the cluster are left: {left}")


def _kill(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _marked(mark: str) -> set[int]:
    return {pid for pid in _processes() if pid != os.getpid() and mark in _environment(pid)}


def _raylets(node: Any) -> set[int]:
    return {info.process.pid for info in node.all_processes["raylet"]}


def _family(pids: set[int]) -> set[int]:
    """Processes with all of their descendants."""
    parents = {pid: _parent(pid) for pid in _processes()}
    found = set(pids)
    while further := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= further
    return found


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environment(pid: int) -> list[str]:
    return _read(pid, "environ").split("\0")


def _is_replica(command: str) -> bool:
    """By how Ray's workers call themselves: ray::CLASS, or ray::ACTOR:CLASS.METHOD while they run one."""
    return command.startswith("ray::") and "ServeReplica" in command and "init" not in command


def _parent(pid: int) -> int:
    """Its process id; 0 of one that has ended."""
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def _command(pid: int) -> str:
    return _read(pid, "cmdline").replace("\0", " ")


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:  # it has ended, or is another user's
        return ""


def main() -> None:
    why_not = missing()
    if why_not is not None:
        sys.exit(why_not)
    import yaml

    config = Path(sys.argv[1]).absolute()
    port = yaml.safe_load(config.read_text())["http_options"]["port"]
    for each in (signal.SIGINT, signal.SIGTERM):  # the first is ignored behind a shell's &, the other ends us unswept
        signal.signal(each, lambda *_: sys.exit())
    with running(cpus=4) as cluster:
        cluster.deploy(config, f"http://127.0.0.1:{port}")
        print(f"serving on 127.0.0.1:{port}; Ctrl-C or kill ends it", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()

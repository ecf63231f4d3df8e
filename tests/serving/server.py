"""The Triton server program out of the PyPI package nvidia-pytriton, started and stopped on loopback ports.

The package's own Python code is not used (nor are its dependencies installed: they hold NumPy below 2). The program
comes with the Python backend only. To try a repository by hand, on Triton's usual ports:

    python -m tests.serving.server REPOSITORY
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path
from typing import NamedTuple

START_SECONDS, EXIT_SECONDS, STOP_SECONDS = 120, 10, 20
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
OWN_LIBRARIES = Path(sysconfig.get_config_var("LIBDIR"))  # libpython of a Python that was built shared


class Server(NamedTuple):
    """Where a running server listens."""

    http: str
    grpc: str
    log: Path
    process: int  # its id
    shared: str  # how the names of its shared memory begin


def _package() -> Path | None:
    spec = importlib.util.find_spec("pytriton")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _stub(package: Path) -> Path:
    return package / "tritonserver" / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"


def missing() -> str | None:
    """Why no server can be started here, with what to install; None if one can."""
    package = _package()
    if package is None:
        return "no Triton server: pip install --no-deps nvidia-pytriton"
    if not _stub(package).is_file():
        return f"nvidia-pytriton has no Python backend for Python {PYTHON}"
    if not (OWN_LIBRARIES / f"libpython{PYTHON}.so.1.0").is_file() and not find_library(f"python{PYTHON}"):
        return f"Triton's Python backend needs libpython{PYTHON}: apt-get install libpython{PYTHON}"
    if importlib.util.find_spec("tritonclient") is None:
        return "no Triton client: pip install 'dynorm-onnx[serving]'"
    return None


@contextlib.contextmanager
def serving(repository: Path, folder: Path, ports: tuple[int, int] | None = None) -> Iterator[Server]:
    """A server of a model repository, ready; what it says goes to FOLDER/server.log."""
    package = _package()
    assert package is not None
    http, grpc = ports or _free_ports(2)
    shared = f"dynorm-{os.getpid()}-{http}-"
    command = [
        str(package / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={_backends(package, folder)}",
        *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc")),
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        "--allow-metrics=false",
        f"--exit-timeout-secs={EXIT_SECONDS}",
        f"--backend-config=python,shm-default-byte-size={1 << 20}",
        f"--backend-config=python,shm-region-prefix-name={shared}",
    ]
    log = folder / "server.log"
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=_environment(package))
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{http}/v2/health/ready", log)
        yield Server(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", log, process.pid, shared)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for region in Path("/dev/shm").glob(f"{shared}*"):  # what an impatient exit leaves behind
            region.unlink(missing_ok=True)


def _backends(package: Path, folder: Path) -> Path:
    """The folder of backends, with the program that runs Python models put where the backend looks for it."""
    target = folder / "backends"
    if not target.exists():
        shutil.copytree(package / "tritonserver" / "backends", target)
        shutil.copy(_stub(package), target / "python")
    return target


def _environment(package: Path) -> dict[str, str]:
    """The Python of models is the one whose `python3` is first in PATH: ours, with all that it has installed."""
    bundled = package.parent / "nvidia_pytriton.libs"
    libraries = [str(bundled), str(OWN_LIBRARIES), os.environ.get("LD_LIBRARY_PATH", "")]
    search = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(libraries), "PATH": os.pathsep.join(search)}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_until_ready(process: subprocess.Popen, url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"the server did not become ready:\n{log.read_text(errors='replace')[-4000:]}")


def main() -> None:
    why_not = missing()
    if why_not is not None:
        sys.exit(why_not)
    for each in (signal.SIGINT, signal.SIGTERM):  # the first is ignored behind a shell's &, the other ends us unswept
        signal.signal(each, lambda *_: sys.exit())
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(sys.argv[1]).absolute(), Path(folder), (8000, 8001)) as running,
    ):
        print(f"serving on {running.http} (HTTP) and {running.grpc} (gRPC); Ctrl-C or kill ends it", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()

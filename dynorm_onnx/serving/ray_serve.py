"""A folder that Ray Serve deploys: an ONNX file, and the serve.yaml of an application that serves it.

    APP/serve.yaml
    APP/model.onnx, model.onnx.data
    APP/libtheirs.so    (libraries of the user's own operators)

The application itself is dynorm_onnx.serving.ray_app, which serve.yaml names; the fields of serve.yaml are those of
ray.serve.schema.ServeDeploySchema.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dynorm_onnx.config import PROVIDERS
from dynorm_onnx.errors import ModelError, UsageError
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.serving.folders import new_folder
from dynorm_onnx.serving.model_files import (
    DEFAULT_BATCH,
    batch_size,
    checked_name,
    libraries_by_name,
    put_model,
)
from dynorm_onnx.serving.open_inference import datatype, is_spoken
from dynorm_onnx.serving.tensors import ServedSignature, served_signature
from dynorm_onnx.serving.yaml_text import yaml_documents

CONFIG = "serve.yaml"
IMPORT_PATH = "dynorm_onnx.serving.ray_app:application"
LISTEN = ("0.0.0.0", 8000)

_MODEL = "model.onnx"
_LONGEST_RUN_S = 60.0
# Serve's own values, written down so that they can be changed in the file
_SCALING = {"metrics_interval_s": 10.0, "look_back_period_s": 30.0, "upscale_delay_s": 30.0, "downscale_delay_s": 600.0}
_HEALTH = {"health_check_period_s": 10.0, "health_check_timeout_s": 30.0}


@dataclasses.dataclass(frozen=True)
class RayDeployment:
    """How many replicas there are, and what each of them has and does."""

    provider: str = "cpu"  # or "cuda": each replica then takes one GPU
    cpus: float = 1.0  # processors that Ray sets aside for each replica
    threads: int | None = None  # within an operator; None: as many as processors, 0: ONNX Runtime's choice
    replicas: tuple[int, int] = (1, 4)  # least and most
    queue_length: float | None = None  # requests per replica, running and waiting, that more replicas are started above
    max_delay_us: int = 100  # microseconds that a request waits for others to share a batch with
    library: bool = True  # False: run by the function bodies
    listen: tuple[str, int] = LISTEN  # address and port of HTTP, on every node

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise UsageError(f"--provider {self.provider!r} is not one of {', '.join(PROVIDERS)}")
        least, most = self.replicas
        if not 1 <= least <= most:
            raise UsageError(f"--replicas {least} {most}: there must be at least 1, and no fewer than the least")
        for knob, number in (("--cpus", self.cpus), ("--queue-length", self.queue_length)):
            if number is not None and not 0 < number < float("inf"):
                raise UsageError(f"{knob} must be above 0, not {number}")
        for knob, count in (("--threads", self.threads), ("--max-delay-us", self.max_delay_us)):
            if count is not None and count < 0:
                raise UsageError(f"{knob} must be at least 0, not {count}")


def write_ray_application(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    name: str | None = None,
    *,
    deployment: RayDeployment | None = None,
    max_batch_size: int | None = None,
    max_length: int = 0,
    host_folder: str | None = None,
    custom_op_library: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Write the folder OUTPUT, with a serve.yaml for `serve run` and `serve deploy`; the model file is not changed.

    Args:
        model: an ONNX file, converted or not.
        output: the new folder.
        name: of the model in the server; by default the file's, without its suffix.
        deployment: the replicas; None takes the defaults.
        max_batch_size: samples in one batch; None: 8 where the first axis of all inputs and outputs is one and the
            same named free size, and 0, no batching, elsewhere.
        max_length: the longest free axis of an input, the samples of a batch aside, that is not refused; 0: any.
        host_folder: where OUTPUT is on every node of the cluster; None: where it is written.
        custom_op_library: files of libraries whose operators the model has; replicas register copies beside the model.

    Returns:
        The serve.yaml.

    Raises:
        ModelError: the model cannot be read or be served; the tensor is named.
        UsageError: a knob is out of range, a library cannot be loaded, or the folder is there already; then nothing was
            written.
    """
    source, target = Path(model), Path(output)
    name = checked_name(name if name is not None else source.stem)
    folder = host_folder if host_folder is not None else str(target.absolute())
    if not folder.startswith("/"):
        raise UsageError(f"--host-folder {folder!r} must be an absolute path: replicas open the model by it as given")
    loaded = model_io.load(source)
    signature = served_signature(loaded)
    _check_types(signature)
    size = batch_size(signature, max_batch_size)
    if max_length < 0:
        raise UsageError(f"--max-length must be at least 0, not {max_length}")
    libraries = libraries_by_name(custom_op_library, (_MODEL, CONFIG))
    config = _config(name, PurePosixPath(folder), list(libraries), deployment or RayDeployment(), size, max_length)
    with new_folder(target) as working:
        put_model(loaded, source, working / _MODEL)
        for file, library in libraries.items():
            shutil.copyfile(library, working / file)
        (working / CONFIG).write_text(yaml_documents([config]), encoding="utf-8")
    return target / CONFIG


def _check_types(signature: ServedSignature) -> None:
    for tensor in (*signature.inputs, *signature.outputs):
        if not is_spoken(tensor):
            raise ModelError(f"{tensor.name!r} is {datatype(tensor)}: a Ray application takes numbers and booleans")


def _config(
    name: str,
    folder: PurePosixPath,
    libraries: Sequence[str],
    deployment: RayDeployment,
    max_batch: int,
    max_length: int,
) -> dict[str, Any]:
    address, port = deployment.listen
    application = {
        "name": name,
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "args": _arguments(name, folder, libraries, deployment, max_batch, max_length),
        "deployments": [_replicas(deployment, max_batch)],
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": address, "port": port},
        "applications": [application],
    }


def _arguments(
    name: str,
    folder: PurePosixPath,
    libraries: Sequence[str],
    deployment: RayDeployment,
    max_batch: int,
    max_length: int,
) -> dict[str, Any]:
    """The fields of ray_app.Settings."""
    threads = deployment.threads if deployment.threads is not None else max(1, int(deployment.cpus))
    return {
        "model": str(folder / _MODEL),
        "custom_op_libraries": [str(folder / library) for library in libraries],
        "name": name,
        "provider": deployment.provider,
        "library": deployment.library,
        "threads": threads,
        "max_batch_size": max_batch,
        "max_delay_us": deployment.max_delay_us,
        "longest_run_s": _LONGEST_RUN_S,
        "max_length": max_length,
    }


def _replicas(deployment: RayDeployment, max_batch: int) -> dict[str, Any]:
    least, most = deployment.replicas
    batch = max_batch or DEFAULT_BATCH
    target = deployment.queue_length if deployment.queue_length is not None else float(batch)
    resources: dict[str, Any] = {"num_cpus": deployment.cpus}
    if deployment.provider == "cuda":
        resources["num_gpus"] = 1
    return {
        "name": "Model",
        # one batch that runs and one that gathers; and never fewer than those that more replicas are started above
        "max_ongoing_requests": max(2 * batch, int(2 * target)),
        "autoscaling_config": {
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": target,
            **_SCALING,
        },
        **_HEALTH,
        "ray_actor_options": resources,
    }

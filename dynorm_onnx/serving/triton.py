"""A Triton model repository with an ONNX model: model, weights, library, config.pbtxt.

    REPO/NAME/config.pbtxt
    REPO/NAME/1/model.onnx, model.onnx.data, libdynorm_ops.so, the model's own libraries
                (and model.py for the Python backend)

The layout is Triton's (docs/user_guide/model_repository.md of triton-inference-server/server).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import onnx_ir as ir

from dynorm_onnx import custom_ops
from dynorm_onnx.errors import ModelError, UsageError
from dynorm_onnx.functions.base import DOMAIN
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.runtime.session import has_kernels
from dynorm_onnx.serving.config_pbtxt import KINDS, TritonConfig
from dynorm_onnx.serving.folders import new_folder
from dynorm_onnx.serving.model_files import batch_size, checked_name, libraries_by_name, put_model
from dynorm_onnx.serving.tensors import ServedSignature, served_signature

log = logging.getLogger(__name__)

Backend = Literal["onnxruntime", "python"]

BACKENDS = ("onnxruntime", "python")
HOST_REPOSITORY = "/models"
LIBRARY_NAME = "libdynorm_ops.so"  # triton_model.py, which stands alone, knows it too

_MODEL, _VERSION = "model.onnx", "1"
_PROGRAM = Path(__file__).with_name("triton_model.py")


def write_triton_model(
    model: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    name: str | None = None,
    *,
    backend: Backend = "onnxruntime",
    provider: str = "cpu",
    instances: int = 1,
    max_batch_size: int | None = None,
    max_delay_us: int = 100,
    max_length: int = 0,
    max_memory_mib: int | None = None,
    threads: int = 0,
    library: bool = True,
    custom_op_library: Sequence[str | os.PathLike[str]] = (),
    host_repository: str = HOST_REPOSITORY,
) -> Path:
    """Write REPOSITORY/NAME, a model that Triton loads; the model file itself is not changed.

    Args:
        model: an ONNX file, converted or not.
        repository: the model repository, made if it is not there.
        name: of the model in the server; by default the file's, without its suffix.
        backend: "onnxruntime", Triton's own, or "python": a model.py that opens the file with dynorm_onnx.session().
        provider: "cpu" or "cuda": where the instances run.
        instances: copies of the model that answer side by side (on each GPU, for "cuda").
        max_batch_size: requests' samples in one batch; None: 8 where the first axis of all inputs and outputs is one
            and the same named free size, and 0, no batching, elsewhere.
        max_delay_us: microseconds that a request waits for others to share a batch with.
        max_length: the longest free axis of an input, the samples aside, that is not refused; 0: any. "python" only.
        max_memory_mib: what the requests of each instance on the CPU may take, beyond which they are refused; 0: no
            bound; None: an equal share of what the host has free when the model is open. "python" only.
        threads: within an operator, of each instance; 0 leaves the choice to ONNX Runtime.
        library: put the custom-op library beside a converted model and name it; without, the function bodies run.
        custom_op_library: files of other libraries whose operators the model has; they go along and are registered.
        host_repository: the path of the repository inside the serving host: Triton loads the library by this path.

    Returns:
        The folder written.

    Raises:
        ModelError: the model cannot be read or be served; the tensor is named.
        UsageError: a knob is out of range, a library cannot be loaded, or the folder is there already; then nothing was
            written.
    """
    source = Path(model)
    name = checked_name(name if name is not None else source.stem)
    _check_knobs(backend, provider, instances, max_delay_us, threads)
    _check_bounds(backend, provider, max_length, max_memory_mib)
    loaded = model_io.load(source)
    signature = served_signature(loaded)
    _check_backend(backend, signature)
    libraries = libraries_by_name(custom_op_library, (LIBRARY_NAME, _MODEL, "model.py"))
    if library and _uses_dynorm(loaded) and (ours := _library_for(provider)) is not None:
        libraries[LIBRARY_NAME] = ours
    config = TritonConfig(
        name=name,
        backend=backend,
        model_file=_MODEL if backend == "onnxruntime" else "model.py",
        signature=signature,
        max_batch_size=batch_size(signature, max_batch_size),
        provider=provider,
        instances=instances,
        max_delay_us=max_delay_us,
        libraries=_host_paths(host_repository, name, libraries) if backend == "onnxruntime" else (),
        parameters=_parameters(
            backend, provider, threads, [file for file in libraries if file != LIBRARY_NAME], max_length, max_memory_mib
        ),
    )
    with new_folder(Path(repository) / name) as folder:
        version = folder / _VERSION
        version.mkdir()
        put_model(loaded, source, version / _MODEL)
        for file, source_file in libraries.items():
            shutil.copyfile(source_file, version / file)
        if backend == "python":
            shutil.copyfile(_PROGRAM, version / "model.py")
        (folder / "config.pbtxt").write_text(config.text(), encoding="utf-8")
    return Path(repository) / name


def _check_knobs(backend: str, provider: str, instances: int, max_delay_us: int, threads: int) -> None:
    for knob, value, choices in (("--backend", backend, BACKENDS), ("--provider", provider, tuple(KINDS))):
        if value not in choices:
            raise UsageError(f"{knob} {value!r} is not one of {', '.join(choices)}")
    for knob, number, least in (("--instances", instances, 1), ("--max-delay-us", max_delay_us, 0)):
        if number < least:
            raise UsageError(f"{knob} must be at least {least}, not {number}")
    if threads < 0:
        raise UsageError(f"--threads must be at least 0, not {threads}")


def _check_bounds(backend: str, provider: str, max_length: int, max_memory_mib: int | None) -> None:
    """What bounds a request is our own program's: Triton has no word for it."""
    for knob, number in (("--max-length", max_length), ("--max-memory-mib", max_memory_mib)):
        if number is not None and number < 0:
            raise UsageError(f"{knob} must be at least 0, not {number}")
        if number and backend != "python":
            raise UsageError(f"{knob} {number} needs --backend python: Triton's own backends have no such bound")
    if max_memory_mib and provider != "cpu":
        raise UsageError(f"--max-memory-mib {max_memory_mib} is of --provider cpu, not of {provider}")


def _check_backend(backend: str, signature: ServedSignature) -> None:
    """Tensors of the Python backend are numpy arrays; strings crash servers built against NumPy 1 (up to 24.10)."""
    for tensor in (*signature.inputs, *signature.outputs):
        if backend == "python" and tensor.data_type in ("TYPE_BF16", "TYPE_STRING"):
            raise ModelError(
                f"{tensor.name!r} is {tensor.data_type}, which cannot be handed to Python: use --backend onnxruntime"
            )


def _uses_dynorm(model: ir.Model) -> bool:
    return DOMAIN in model.opset_imports


def _library_for(provider: str) -> Path | None:
    """The library, if there is one that can serve the provider; a warning says so if not."""
    path = custom_ops.library_path()
    if path is None:
        log.warning("dynorm-onnx was installed without its custom-op library: the model runs by its function bodies")
        return None
    if not has_kernels(provider):
        log.warning("%s has no kernels for %s: it is left out, the model runs by its function bodies", path, provider)
        return None
    return path


def _host_paths(host_repository: str, name: str, libraries: Iterable[str]) -> tuple[str, ...]:
    files = tuple(libraries)
    if files and not host_repository.startswith("/"):
        raise UsageError(
            f"--host-repository {host_repository!r} must be an absolute path: Triton loads the library by it as given"
        )
    return tuple(str(PurePosixPath(host_repository) / name / _VERSION / file) for file in files)


def _parameters(
    backend: str, provider: str, threads: int, libraries: Sequence[str], max_length: int, max_memory_mib: int | None
) -> dict[str, str]:
    if backend == "python":
        named = {"custom_op_libraries": json.dumps(libraries)} if libraries else {}
        named |= {"max_length": str(max_length)} if max_length else {}
        named |= {"max_memory_mib": str(max_memory_mib)} if max_memory_mib is not None else {}
        return {"provider": provider, "threads": str(threads), **named}
    return {"intra_op_thread_count": str(threads)} if threads else {}

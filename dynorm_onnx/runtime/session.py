"""The only place where ONNX Runtime sessions are made."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from dynorm_onnx import custom_ops
from dynorm_onnx.errors import ModelError, NoMemoryError, ProviderError, UsageError
from dynorm_onnx.runtime.arrays import first_line, lacks_memory, run
from dynorm_onnx.runtime.library import onnxruntime, preload_cuda
from dynorm_onnx.runtime.placement import RECORD_PLACEMENT, check_placement
from dynorm_onnx.runtime.user_libraries import register as register_user_libraries

log = logging.getLogger(__name__)

Model: TypeAlias = str | os.PathLike | bytes | onnx.ModelProto | ir.Model
Provider: TypeAlias = str  # "cpu" or "cuda", checked where a session is made
Optimization = Literal["all", "basic", "none"]

PROVIDERS: dict[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""ONNX Runtime's providers of each of ours, the first the one that must be there."""

_LEVELS = {"all": "ORT_ENABLE_ALL", "basic": "ORT_ENABLE_BASIC", "none": "ORT_DISABLE_ALL"}
_SPINNING = "session.intra_op.allow_spinning"
_NO_PREPACKING = "session.disable_prepacking"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_LARGEST_MESSAGE = 2**31 - 2**24  # protobuf's 2 GiB, with room for the nodes
_ERROR, FATAL = 3, 4  # ONNX Runtime's log severities
_UNKNOWN_OPERATOR = "is not a registered function/op"  # of ONNX Runtime's message


def make_session(
    model: Model,
    *,
    provider: Provider = "cpu",
    optimization: Optimization = "all",
    kernels: bool | None = None,
    threads: int | None = None,
    spinning: bool = False,
    arena: bool = True,
    prepacking: bool = True,
    log_severity: int = _ERROR,
    provider_options: Mapping[str, str] | None = None,
    custom_op_libraries: Sequence[str | os.PathLike[str]] = (),
) -> Any:
    """An onnxruntime.InferenceSession that runs on the provider asked for.

    Args:
        model: a file, its bytes, or a model in memory of any size; a model is not changed.
        provider: "cpu" or "cuda"; another provider is never put in its place.
        optimization: ONNX Runtime's graph optimisation level.
        kernels: register the custom-op library; None does so where it can serve the provider, and leaves
            the function bodies to be inlined otherwise.
        threads: threads within an operator; None leaves the choice to ONNX Runtime.
        spinning: whether its threads keep their processors busy while they wait for the next operator, which is what
            ONNX Runtime does by itself. For sessions that serve or are timed; where runs take turns with other work, of
            this process or another, they would take the processor from it.
        arena: whether memory is kept from run to run, which saves up to a tenth of the time and may hold twice what
            one run needs.
        prepacking: whether ONNX Runtime copies weights into the order that its kernels read them in. While it does, a
            weight is there twice; without, each run does so part by part.
        log_severity: the least severity that ONNX Runtime itself writes to stderr (2 warnings, 3 errors).
        provider_options: options of the provider, as ONNX Runtime names them ({"use_tf32": "0"}).
        custom_op_libraries: files of other libraries whose operators the model has. Those that
            user_libraries.registered() names are registered in any case.

    Raises:
        UsageError: no ONNX Runtime is installed, an argument is out of range, kernels=True and the library cannot
            serve the provider, or a file of custom_op_libraries is missing or is no such library.
        ProviderError: the provider is not there, or nodes that it must take were placed elsewhere.
        ModelError: ONNX Runtime cannot load the model; NoMemoryError where it cannot for that.
    """
    ort = onnxruntime()
    _check_choices(provider, optimization, threads)
    options = ort.SessionOptions()
    options.log_severity_level = log_severity
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[optimization])
    options.add_session_config_entry(*RECORD_PLACEMENT)
    options.enable_cpu_mem_arena = options.enable_mem_pattern = arena
    if not prepacking:
        options.add_session_config_entry(_NO_PREPACKING, "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if not spinning:
        options.add_session_config_entry(_SPINNING, "0")
    _require_provider(provider)
    _register_kernels(options, provider, kernels)
    register_user_libraries(options, custom_op_libraries)
    source = _loadable(model)
    if source.weights_folder is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(source.weights_folder))
    try:
        # Without enable_fallback=0 a failure is printed to stdout and tried again on the CPU.
        first, *rest = PROVIDERS[provider]
        providers = [(first, dict(provider_options or {})), *rest]
        made = ort.InferenceSession(source.content, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        if lacks_memory(error):
            raise NoMemoryError(f"not enough memory to load {source.name}: {first_line(error)}") from error
        hint = "; register its library: --custom-op-library" if _UNKNOWN_OPERATOR in str(error) else ""
        raise ModelError(f"ONNX Runtime cannot load {source.name}: {first_line(error)}{hint}") from error
    if source.temporary is not None:
        weakref.finalize(made, source.temporary.cleanup)
    if PROVIDERS[provider][0] not in made.get_providers():
        raise ProviderError(
            f"{provider} was asked for, but ONNX Runtime gave a session on "
            f"{', '.join(made.get_providers())}; its log on stderr says why"
        )
    check_placement(made, PROVIDERS[provider][0])
    return made


def session(
    model: Model,
    provider: Provider = "cpu",
    *,
    threads: int | None = None,
    custom_op_libraries: Sequence[str | os.PathLike[str]] = (),
) -> Any:
    """An onnxruntime.InferenceSession of a (converted) model, with our kernels where they can be had.

    The custom-op library is registered when it can serve the provider; otherwise ONNX Runtime runs the
    standard operators of the function bodies that the file carries. The log says which.

    Args:
        model: a file, its bytes, or a model in memory of any size; a model is not changed.
        provider: "cpu" or "cuda"; another provider is never put in its place.
        threads: threads within an operator; None leaves the choice to ONNX Runtime.
        custom_op_libraries: files of other libraries whose operators the model has.

    Raises:
        UsageError: no ONNX Runtime is installed, an argument is out of range, or a file of custom_op_libraries is
            missing or is no such library.
        ProviderError: the provider is not there, nodes that it must take were placed elsewhere, or the environment
            variable DYNORM_LIBRARY names no custom-op library of ours.
        ModelError: ONNX Runtime cannot load the model.
    """
    speed = "with the custom-op library" if has_kernels(provider) else "by the function bodies"
    log.info("dynorm operators run %s on %s", speed, provider)
    return make_session(
        model, provider=provider, threads=threads, spinning=True, custom_op_libraries=custom_op_libraries
    )


def runnable(model: onnx.ModelProto | ir.Model) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
    """What runs a small model as it is written, on the CPU, unoptimised, bodies inlined: feeds -> its outputs.

    Made for proving that a piece of a graph computes what is claimed. Raises ModelError where ONNX
    Runtime has no kernel for a node, and when run DataError where the feeds do not fit.
    """
    made = make_session(model, optimization="none", kernels=False, threads=1, log_severity=FATAL)
    return lambda feeds: list(run(made, feeds).values())


def has_kernels(provider: Provider) -> bool:
    """Whether the custom-op library is installed and has kernels for the provider."""
    return PROVIDERS[provider][0] in custom_ops.library_providers()


def _check_choices(provider: str, optimization: str, threads: int | None) -> None:
    if provider not in PROVIDERS:
        raise UsageError(f"provider {provider!r} is not one of {', '.join(PROVIDERS)}")
    if optimization not in _LEVELS:
        raise UsageError(f"optimization {optimization!r} is not one of {', '.join(_LEVELS)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")


def _require_provider(provider: Provider) -> None:
    ort = onnxruntime()
    wanted, available = PROVIDERS[provider][0], ort.get_available_providers()
    if wanted not in available:
        raise ProviderError(
            f"{provider} was asked for, but this ONNX Runtime ({ort.__version__}) only has "
            f"{', '.join(available)}; CUDA comes with `pip install dynorm-onnx[gpu]`"
        )
    if provider == "cuda":
        preload_cuda()


def _register_kernels(options: Any, provider: Provider, kernels: bool | None) -> None:
    """Register the custom-op library; one without kernels for the provider would run on the CPU, silently."""
    served = kernels is not False and has_kernels(provider)
    if kernels and not served:
        raise UsageError(f"kernels were asked for, but no custom-op library that serves {provider} is installed")
    if served:
        custom_ops.register(options)


@dataclasses.dataclass(frozen=True)
class _Loadable:
    """A model as ONNX Runtime takes it."""

    content: str | bytes
    name: str  # for messages
    weights_folder: Path | None = None  # where the external data that `content` names lies
    temporary: tempfile.TemporaryDirectory | None = None  # lives as long as the session


def _loadable(model: Model) -> _Loadable:
    if isinstance(model, bytes):
        return _Loadable(model, "the model")
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if not path.is_file():
            raise ModelError(f"{path}: there is no such file")
        return _Loadable(str(path), str(path))
    if isinstance(model, onnx.ModelProto):
        return _loadable_proto(model)
    return _loadable_ir(model)


def _loadable_proto(model: onnx.ModelProto) -> _Loadable:
    if model.ByteSize() < _LARGEST_MESSAGE:
        return _Loadable(model.SerializeToString(), _name(model.graph.name))
    return _saved(ir.from_proto(model))


def _loadable_ir(model: ir.Model) -> _Loadable:
    """Bytes that refer to the weights files where they are; a temporary copy only if that cannot be."""
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    external = [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
    inside = sum(tensor.nbytes for tensor in tensors if tensor is not None) - sum(t.nbytes for t in external)
    folders = {Path(tensor.base_dir).resolve() for tensor in external}
    if inside >= _LARGEST_MESSAGE or len(folders) > 1:
        return _saved(model)
    content = ir.to_proto(model).SerializeToString()
    return _Loadable(content, _name(model.graph.name), folders.pop() if folders else None)


def _saved(model: ir.Model) -> _Loadable:
    folder = tempfile.TemporaryDirectory(prefix="dynorm-", ignore_cleanup_errors=True)
    path = Path(folder.name) / "model.onnx"
    ir.save(model, path, external_data="model.onnx.data")
    return _Loadable(str(path), _name(model.graph.name), temporary=folder)


def _name(graph_name: str | None) -> str:
    return f"the model {graph_name!r}" if graph_name else "the model"

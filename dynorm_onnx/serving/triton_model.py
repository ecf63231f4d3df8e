"""A model of Triton's Python backend that runs an ONNX file: this file is copied to NAME/1/model.py.

It stands alone. Where dynorm_onnx can be imported the session is dynorm_onnx's; elsewhere it is plain ONNX Runtime
with the library that lies beside this file. See https://github.com/triton-inference-server/python_backend for the
interface; `triton_python_backend_utils` is provided by the server.
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

LIBRARY = "libdynorm_ops.so"
USED = b"used_dltensor"  # DLPack's name of a capsule whose tensor has been taken; must outlive all of them

_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes = [ctypes.py_object, ctypes.c_char_p]

_SHARE = 0.8  # of what is free: the rest is for what this process does beside its runs
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class _Refused(ValueError):
    """A request that does not fit."""


class TritonPythonModel:
    """One instance of the model: a session."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session that config.pbtxt's parameters ask for, and bound what its requests may take."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        self.batched = config["max_batch_size"] > 0
        self.outputs = [output["name"] for output in config["output"]]
        self.inputs = [value["name"] for value in config["input"]]
        self.dims = {value["name"]: [int(size) for size in value["dims"]] for value in config["input"]}
        self.max_length = int(parameters.get("max_length", "0"))
        device = int(args["model_instance_device_id"] or 0)
        self.session = _open(folder, parameters, device)
        self.scalars = {value.name for value in self.session.get_inputs() if value.shape == []}
        if parameters["provider"] == "cpu":
            instances = sum(int(group["count"]) for group in config["instance_group"])
            _bound_memory(parameters.get("max_memory_mib", ""), instances)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by its outputs, or by an error of its own.

        Those of a batch, which Triton only groups if their shapes agree, are answered in one run.
        """
        answers: list[Any] = [None] * len(requests)
        feeds: dict[int, dict[str, np.ndarray]] = {}
        for position, request in enumerate(requests):
            try:
                feeds[position] = self._feeds(request)
            except Exception as error:  # of the request, of the server's binding, or of memory
                answers[position] = _refusal(error)
        if self.batched and len(feeds) > 1:
            for position, answer in zip(feeds, self._joined(list(feeds.values())), strict=True):
                answers[position] = answer
        else:
            for position, alone in feeds.items():
                answers[position] = self._alone(alone)
        return answers

    def _feeds(self, request: Any) -> dict[str, np.ndarray]:
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs}
        missing = [name for name, tensor in tensors.items() if tensor is None]
        if missing:
            raise _Refused(f"the request lacks the input {missing[0]!r}")
        # DLPack: a server that was built against NumPy 1 takes the items of NumPy 2's arrays to have no bytes
        arrays = {name: np.from_dlpack(tensor) for name, tensor in tensors.items()}
        for name, array in arrays.items():
            self._check_length(name, array)
        return {name: array.reshape(()) if name in self.scalars else array for name, array in arrays.items()}

    def _check_length(self, name: str, array: np.ndarray) -> None:
        sizes = array.shape[1:] if self.batched else array.shape
        free = [size for size, given in zip(sizes, self.dims[name], strict=False) if given < 0]
        if self.max_length and max(free, default=0) > self.max_length:
            raise _Refused(
                f"the input {name!r} has the shape {list(array.shape)}, and no axis may be longer than max_length, "
                f"{self.max_length}"
            )

    def _joined(self, feeds: list[dict[str, np.ndarray]]) -> list[Any]:
        try:
            joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}
            results = self.session.run(self.outputs, joined)
            ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])
            if all(len(result) == ends[-1] for result in results):
                parts = [np.split(result, ends[:-1]) for result in results]
                return [_answer(self.outputs, part) for part in zip(*parts, strict=True)]
        except Exception:  # one bad request must not spoil the answers of the others
            pass
        return [self._alone(feed) for feed in feeds]

    def _alone(self, feeds: dict[str, np.ndarray]) -> Any:
        try:
            return _answer(self.outputs, self.session.run(self.outputs, feeds))
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            return _refusal(error, feeds)


def _refusal(error: Exception, feeds: dict[str, np.ndarray] | None = None) -> Any:
    """An error of one request: the first line of what was raised, and what the inputs were."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    inputs = ", ".join(f"{name!r} {array.dtype} {list(array.shape)}" for name, array in (feeds or {}).items())
    said = lines[0].removeprefix("[ONNXRuntimeError] : ") + (f" (of {inputs})" if inputs else "")
    # what the client can mend is not the server's fault; servers before 23.09 have no codes
    theirs = isinstance(error, _Refused) or type(error).__name__ == "InvalidArgument"
    code = [pb_utils.TritonError.INVALID_ARG] if theirs and hasattr(pb_utils.TritonError, "INVALID_ARG") else []
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(said, *code))


def _answer(names: list[str], arrays: Any) -> Any:
    # of at least one axis, which ascontiguousarray sees to: Triton has no scalars
    whole = map(np.ascontiguousarray, arrays)
    tensors = [_tensor(name, array) for name, array in zip(names, whole, strict=True)]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _tensor(name: str, array: np.ndarray) -> Any:
    """A tensor of the server that shares the array's memory.

    The server marks the capsule as used by another name than DLPack gives, so that NumPy, as it drops the capsule,
    takes it for a foreign one and writes a traceback to the log, for each answer. Hence the right name.
    """
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    _set_name(capsule, USED)
    return tensor


def _bound_memory(mebibytes: str, instances: int) -> None:
    """Have a request that wants more memory refused: the kernel would end this process, which Triton starts no more.

    "": an equal share, between instances, of what is free now that the model is open. "0": no bound.
    """
    if mebibytes == "0":
        return
    import resource  # not on Windows

    more = int(mebibytes) << 20 if mebibytes else int(_SHARE * _free_bytes() / instances)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now = int(status["VmData"].split()[0]) << 10
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = now + more if hard == resource.RLIM_INFINITY else min(now + more, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
    pb_utils.Logger.log_info(f"requests may take {more >> 20} MiB of memory")


def _free_bytes() -> int:
    """What the machine has available, or the control group leaves, if that is less."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) << 10
    for most, used in _GROUPS:  # within a container these are the container's own
        try:
            free = min(free, int(Path(most).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such version of control groups, or "max"
            continue
    return max(0, free)


def _open(folder: Path, parameters: dict[str, str], device: int) -> Any:
    """The session: dynorm_onnx's, which runs on the first GPU, else plain ONNX Runtime's with the library beside us."""
    model, provider = folder / "model.onnx", parameters["provider"]
    threads = int(parameters["threads"]) or None
    library = folder / LIBRARY
    others = [str(folder / name) for name in json.loads(parameters.get("custom_op_libraries", "[]"))]
    if device == 0:
        try:
            made = _our_session(model, library, others, provider, threads)
            pb_utils.Logger.log_info(f"{model}: opened by dynorm_onnx")
            return made
        except ImportError:
            pass
    pb_utils.Logger.log_info(f"{model}: opened by plain ONNX Runtime")
    return _plain_session(model, library, others, provider, threads, device)


def _our_session(model: Path, library: Path, others: list[str], provider: str, threads: int | None) -> Any:
    if library.is_file():
        os.environ.setdefault("DYNORM_LIBRARY", str(library))
    from dynorm_onnx.runtime.session import make_session

    kernels = None if library.is_file() else False
    return make_session(
        model, provider=provider, kernels=kernels, threads=threads, spinning=True, custom_op_libraries=others
    )


def _plain_session(
    model: Path, library: Path, others: list[str], provider: str, threads: int | None, device: int
) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    for path in [*([str(library)] if library.is_file() else []), *others]:
        options.register_custom_ops_library(path)
    providers: list[Any] = ["CPUExecutionProvider"]
    if provider == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device}))
    return ort.InferenceSession(str(model), options, providers=providers)

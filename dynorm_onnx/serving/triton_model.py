"""A model of Triton's Python backend that runs an ONNX file: this file is copied to NAME/1/model.py.

It stands alone. Where dynorm_onnx can be imported the session is dynorm_onnx's; elsewhere it is plain ONNX Runtime
with the library that lies beside this file. See https://github.com/triton-inference-server/python_backend for the
interface; `triton_python_backend_utils` is provided by the server.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

LIBRARY = "libdynorm_ops.so"


class TritonPythonModel:
    """One instance of the model: a session."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session that config.pbtxt's parameters ask for."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        self.batched = config["max_batch_size"] > 0
        self.outputs = [output["name"] for output in config["output"]]
        self.inputs = [value["name"] for value in config["input"]]
        device = int(args["model_instance_device_id"] or 0)
        self.session = _open(folder, parameters, device)
        self.scalars = {value.name for value in self.session.get_inputs() if value.shape == []}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests; those of a batch, which Triton only groups if their shapes agree, in one run."""
        feeds = [self._feeds(request) for request in requests]
        if not self.batched or len(requests) == 1:
            return [self._response(self.outputs, feed) for feed in feeds]
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}
        try:
            results = self.session.run(self.outputs, joined)
        except Exception:  # one bad request must not spoil the answers of the others
            return [self._response(self.outputs, feed) for feed in feeds]
        ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])[:-1]
        parts = [np.split(result, ends) for result in results]
        return [_answer(self.outputs, part) for part in zip(*parts, strict=True)]

    def _feeds(self, request: Any) -> dict[str, np.ndarray]:
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs}
        # DLPack: a server that was built against NumPy 1 takes the items of NumPy 2's arrays to have no bytes
        arrays = {name: np.from_dlpack(tensor) for name, tensor in tensors.items()}
        return {name: array.reshape(()) if name in self.scalars else array for name, array in arrays.items()}

    def _response(self, names: list[str], feeds: dict[str, np.ndarray]) -> Any:
        try:
            return _answer(names, self.session.run(names, feeds))
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))


def _answer(names: list[str], arrays: Any) -> Any:
    # of at least one axis, which ascontiguousarray sees to: Triton has no scalars
    whole = map(np.ascontiguousarray, arrays)
    tensors = [pb_utils.Tensor.from_dlpack(name, array) for name, array in zip(names, whole, strict=True)]
    return pb_utils.InferenceResponse(output_tensors=tensors)


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

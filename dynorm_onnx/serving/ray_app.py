"""The Ray Serve application of one ONNX file: what serve.yaml's import_path names.

Each replica holds one session of dynorm_onnx.session() and answers the Open Inference Protocol over HTTP. Requests
that are under way at once are joined to batches by serve.batch, with Serve's own interface:
docs.ray.io, "Ray Serve API". Ray must be installed to import this file.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dynorm_onnx.errors import DataError
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.runtime.arrays import first_line
from dynorm_onnx.runtime.session import make_session
from dynorm_onnx.serving.open_inference import (
    HEADER_LENGTH,
    VERSION,
    InferenceRequest,
    check_lengths,
    check_samples,
    described,
    metadata,
    read_request,
    write_response,
)
from dynorm_onnx.serving.tensors import served_signature

log = logging.getLogger(__name__)

_MODEL_PATH = re.compile(rf"/v2/models/([^/]+)(?:/versions/{VERSION})?(/ready|/infer)?")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The `args` of serve.yaml."""

    model: str  # the file, on every node
    custom_op_libraries: Sequence[str]  # files too, whose operators the model has
    name: str  # of the model in the server
    provider: str  # "cpu" or "cuda"
    library: bool  # False: run by the function bodies
    threads: int  # within an operator; 0: ONNX Runtime's choice
    max_batch_size: int  # samples; 0: the model sees every request as it came
    max_delay_us: int  # microseconds that a request waits for others
    longest_run_s: float  # seconds; a replica whose run takes longer is replaced
    max_length: int = 0  # the longest free axis of an input, samples aside, that is not refused; 0: any


def application(args: dict[str, Any]) -> serve.Application:
    """The application, for Serve; `args` are the fields of Settings."""
    return serve.deployment(Model).bind(Settings(**args))


def _samples(requests: Sequence[InferenceRequest]) -> int:
    """In requests that may share a batch, each with as many samples in every input."""
    return sum(len(next(iter(request.feeds.values()))) for request in requests)


class Model:
    """One replica: a session."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._signature = served_signature(model_io.load(settings.model))
        self._session = make_session(
            settings.model,
            provider=settings.provider,
            kernels=None if settings.library else False,
            threads=settings.threads or None,
            spinning=True,
            custom_op_libraries=settings.custom_op_libraries,
        )
        self._outputs = [tensor.name for tensor in self._signature.outputs]
        self._running_since: dict[object, float] = {}  # of the runs under way, each in a thread of its own
        self._joined.set_max_batch_size(max(1, settings.max_batch_size))
        self._joined.set_batch_wait_timeout_s(settings.max_delay_us / 1e6)

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica where this raises: one whose session hangs."""
        since = min(list(self._running_since.values()), default=time.monotonic())
        if time.monotonic() - since > self._settings.longest_run_s:
            raise RuntimeError(f"a run has taken more than {self._settings.longest_run_s} s")

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "").rstrip("/"))
        if request.method == "GET" and path in ("/v2/health/live", "/v2/health/ready"):
            return Response()
        if request.method == "GET" and path == "/v2":
            return JSONResponse({"name": "dynorm-onnx", "version": VERSION, "extensions": ["binary_tensor_data"]})
        matched = _MODEL_PATH.fullmatch(path)
        if matched is None or (request.method, matched[2]) not in (
            ("GET", None),
            ("GET", "/ready"),
            ("POST", "/infer"),
        ):
            return _error(404, f"there is nothing at {request.method} {path}")
        if matched[1] != self._settings.name:
            return _error(404, f"there is no model {matched[1]!r} here, but {self._settings.name!r}")
        if matched[2] == "/infer":
            return await self._infer(request)
        return JSONResponse(metadata(self._settings.name, self._signature)) if matched[2] is None else Response()

    async def _infer(self, request: Request) -> Response:
        if request.headers.get("content-encoding", "identity") != "identity":
            return _error(415, f"bodies in {request.headers['content-encoding']!r} are not read")
        try:
            asked = read_request(await request.body(), request.headers.get(HEADER_LENGTH), self._signature)
            batched = self._settings.max_batch_size > 0
            check_lengths(asked, self._signature, self._settings.max_length, batched=batched)
            if batched:
                check_samples(asked, self._settings.max_batch_size)
            answer = await self._joined(asked) if batched else (await self._alone([asked]))[0]
            if isinstance(answer, Exception):
                # what the client cannot mend by another request is the server's fault
                status = 400 if type(answer).__name__ == "InvalidArgument" else 500
                return _error(status, f"{first_line(answer)} (of {described(asked.feeds)})")
            body, head = write_response(self._settings.name, asked, dict(zip(self._outputs, answer, strict=True)))
        except DataError as error:
            return _error(400, str(error))
        if head is None:
            return Response(body, media_type="application/json")
        return Response(body, headers={HEADER_LENGTH: str(head)}, media_type="application/octet-stream")

    @serve.batch(batch_size_fn=_samples)
    async def _joined(self, requests: list[InferenceRequest]) -> list[Any]:
        """The outputs of each request, or what the session raised; those whose shapes agree, in one run."""
        alike: dict[tuple, list[int]] = {}
        for position, request in enumerate(requests):
            alike.setdefault(tuple(array.shape[1:] for array in request.feeds.values()), []).append(position)
        answers: list[Any] = [None] * len(requests)
        for positions in alike.values():
            together = [requests[position] for position in positions]
            for position, answer in zip(positions, await self._together(together), strict=True):
                answers[position] = answer
        return answers

    async def _together(self, requests: list[InferenceRequest]) -> list[Any]:
        if len(requests) == 1:
            return await self._alone(requests)
        joined = {name: np.concatenate([each.feeds[name] for each in requests]) for name in requests[0].feeds}
        try:
            results = await self._run(joined)
        except Exception:  # one bad request must not spoil the answers of the others
            return await self._alone(requests)
        ends = np.cumsum([_samples([each]) for each in requests])
        if any(len(result) != ends[-1] for result in results):
            return await self._alone(requests)
        return list(zip(*(np.split(result, ends[:-1]) for result in results), strict=True))

    async def _alone(self, requests: list[InferenceRequest]) -> list[Any]:
        answers: list[Any] = []
        for request in requests:
            try:
                answers.append(await self._run(request.feeds))
            except Exception as error:  # ONNX Runtime's exceptions have no common base class
                answers.append(error)
        return answers

    async def _run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """One run, in a thread of its own: Serve's health checks are answered meanwhile."""
        return await asyncio.to_thread(self._timed_run, feeds)

    def _timed_run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """In the thread: where the client has gone nobody awaits the run, but it goes on."""
        run = object()
        self._running_since[run] = time.monotonic()
        try:
            return self._session.run(self._outputs, feeds)
        finally:
            del self._running_since[run]


def _error(status: int, words: str) -> Response:
    return Response(json.dumps({"error": words}), status, media_type="application/json")

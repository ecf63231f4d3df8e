"""Latency of models in a running Triton server under concurrent requests, by tritonclient."""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, Self

import numpy as np

from dynorm_onnx.errors import DataError, UsageError

PROTOCOLS = {"grpc": "127.0.0.1:8001", "http": "127.0.0.1:8000"}
"""Ways to a server, with the address that Triton has by default."""

_ROUNDS = 4  # each model is asked in so many turns, so that what else the machine does meets all alike
_WARM_UP = 3  # requests of each client


@dataclasses.dataclass(frozen=True)
class Latency:
    """What one model did under load: times from sending a request to having its outputs, milliseconds."""

    model: str
    protocol: str
    concurrency: int  # clients, each with one request under way
    requests: int
    per_second: float  # requests answered
    median_ms: float
    p90_ms: float
    p99_ms: float

    @classmethod
    def of(cls, model: str, protocol: str, concurrency: int, seconds: Sequence[float], wall: float) -> Latency:
        """The quantiles of measured seconds; `wall` is how long all of it took."""
        median, p90, p99 = (float(1e3 * q) for q in np.quantile(seconds, (0.5, 0.9, 0.99)))
        return cls(model, protocol, concurrency, len(seconds), len(seconds) / wall, median, p90, p99)


def measure_latency(
    models: Sequence[str],
    *,
    protocol: str = "grpc",
    url: str | None = None,
    feeds: Mapping[str, np.ndarray] | None = None,
    shape: tuple[int, int] = (1, 128),
    below: int = 256,
    concurrency: int = 4,
    seconds: float = 5.0,
    seed: int = 0,
) -> list[Latency]:
    """Ask the models of a server in turn, each by `concurrency` clients at once.

    Args:
        models: names in the server.
        protocol: "grpc" or "http". url: host:port; by default Triton's own port on this machine.
        feeds: an array for every input; None draws them: the first free axis of an input has shape[0] entries, all
            others have shape[1]; integers are below `below`, masks are ones, floats standard normal.
        concurrency: clients; each sends its next request when the last is answered.
        seconds: for each model.

    Raises:
        UsageError: the [serving] extra is not installed, or nothing answers at the url. DataError: the server knows no
        such model or refuses the request; its words are in the message.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"--protocol {protocol!r} is not one of {', '.join(PROTOCOLS)}")
    client = _client_module(protocol)
    address = url or PROTOCOLS[protocol]
    rng = np.random.default_rng(seed)
    with _Client(client, address) as first:
        inputs = {name: feeds or _drawn(first.inputs_of(name), shape, below, rng) for name in models}
    taken: dict[str, list[float]] = {name: [] for name in models}
    walls = dict.fromkeys(models, 0.0)

    def ask(name: str) -> list[float]:
        with _Client(client, address) as worker:
            return worker.times(name, inputs[name], seconds / _ROUNDS)

    with ThreadPoolExecutor(concurrency) as pool:
        for name in [*models] * _ROUNDS:
            start = time.perf_counter()
            for times in pool.map(ask, [name] * concurrency):
                taken[name] += times
            walls[name] += time.perf_counter() - start
    return [Latency.of(name, protocol, concurrency, taken[name], walls[name]) for name in models]


def _client_module(protocol: str) -> ModuleType:
    try:
        return importlib.import_module(f"tritonclient.{protocol}")
    except ImportError as error:
        hint = "pip install 'dynorm-onnx[serving]'"
        raise UsageError(f"asking a Triton server needs tritonclient ({error}): {hint}") from None


class _Client:
    """A connection of its own: the one for HTTP may not even be handed from one thread to another."""

    def __init__(self, module: ModuleType, url: str) -> None:
        self._module, self._url = module, url
        self._client = module.InferenceServerClient(url)

    def inputs_of(self, model: str) -> list[tuple[str, str, list[int]]]:
        """(name, Triton's name of the type, shape with -1 where free) of every input."""
        try:
            metadata = self._client.get_model_metadata(model)
        except Exception as error:  # of either protocol; they have no common base
            raise self._sentence(model, error) from error
        if isinstance(metadata, dict):
            return [(value["name"], value["datatype"], value["shape"]) for value in metadata["inputs"]]
        return [(value.name, value.datatype, list(value.shape)) for value in metadata.inputs]

    def times(self, model: str, feeds: Mapping[str, np.ndarray], seconds: float) -> list[float]:
        """Seconds of each request, sent one after the other for so long, after a few to warm up."""
        tensors = [self._tensor(name, array) for name, array in feeds.items()]
        taken: list[float] = []
        for _ in range(_WARM_UP):
            self._infer(model, tensors)
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end or not taken:
            self._infer(model, tensors)
            taken.append(time.perf_counter() - start)
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def _tensor(self, name: str, array: np.ndarray) -> Any:
        from tritonclient.utils import np_to_triton_dtype

        tensor = self._module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        return tensor

    def _infer(self, model: str, tensors: list[Any]) -> None:
        try:
            self._client.infer(model, tensors)
        except Exception as error:
            raise self._sentence(model, error) from error

    def _sentence(self, model: str, error: Exception) -> UsageError | DataError:
        words = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, OSError) or "UNAVAILABLE" in words or "failed to connect" in words:
            return UsageError(f"no Triton server answers at {self._url}: {words}")
        return DataError(f"the server at {self._url} refuses {model!r}: {words}")


def _drawn(
    inputs: Sequence[tuple[str, str, list[int]]], shape: tuple[int, int], below: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    from tritonclient.utils import triton_to_np_dtype

    feeds = {}
    for name, data_type, axes in inputs:
        dtype = np.dtype(triton_to_np_dtype(data_type))
        free = iter((shape[0], *[shape[1]] * len(axes)))
        sizes = [int(size) if int(size) >= 0 else next(free) for size in axes]
        if dtype.kind not in "iufb":
            raise DataError(f"input {name!r} is {data_type}, which is not drawn: give --feeds FILE.npz")
        if "mask" in name or dtype.kind == "b":
            feeds[name] = np.ones(sizes, dtype)
        elif dtype.kind in "iu":
            feeds[name] = rng.integers(0, below, sizes).astype(dtype)
        else:
            feeds[name] = rng.standard_normal(sizes).astype(dtype)
    return feeds

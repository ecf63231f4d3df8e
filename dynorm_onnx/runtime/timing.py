"""How long sessions take, compared fairly: in turn within one process, on bound inputs and outputs."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dynorm_onnx.errors import DataError, ModelError, UsageError
from dynorm_onnx.runtime.arrays import Feeds, feed_value, fetch_value, first_line, is_tensor_of_numbers, run
from dynorm_onnx.runtime.library import onnxruntime

_WARM_UP_RUNS = 3
_LEAST_ROUNDS = 5
_BURST_SECONDS = 0.05
_SPIN_SECONDS = 0.05  # for how long worker threads wait for more work before they sleep: 25 to 30 ms were measured
_LONGEST_BURST = 200
_FATAL = 4  # ONNX Runtime's log severity
_GRAPH_ID, _NO_GRAPH = "gpu_graph_id", "-1"  # ONNX Runtime's run option: which captured CUDA graph a run belongs to
_graph_ids = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Timing:
    """The time of one run of a variant, in milliseconds."""

    variant: str
    provider: str  # "cpu" or "cuda"
    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int  # that the quantiles are over

    @classmethod
    def of(cls, variant: str, provider: str, seconds: list[float]) -> Timing:
        """The quantiles of measured seconds."""
        p10, median, p90 = (float(1e3 * q) for q in np.quantile(seconds, (0.1, 0.5, 0.9)))
        return cls(variant, provider, median, p10, p90, len(seconds))

    def as_dict(self) -> dict[str, Any]:
        """The JSON object, a row of "timing"."""
        return dataclasses.asdict(self)


def bind(session: Any, feeds: Mapping[str, Any], provider: str = "cpu") -> Callable[[], None]:
    """A function that runs the session once on these feeds.

    Inputs lie on the provider's device and the outputs of the first run are written over by those that
    follow: what is timed is neither copying nor allocating. Where outputs change their size from run to run, as they
    may with random numbers, each run allocates them. A run ends when the device has finished. Feeds are arrays, or
    OrtValues that lie on the device already; those that the model has no input for are not used. Strings and
    sequences cannot be bound: with them the session runs unbound, and copies are timed too. In a session with the
    provider option enable_cuda_graph, the function's runs replay a graph of their own.

    Raises DataError where an input has no feed, ModelError where the model fails.
    """
    inputs = [value.name for value in session.get_inputs()]
    missing = next((name for name in inputs if name not in feeds), None)
    if missing is not None:
        raise DataError(f"input {missing!r} of the model to be timed has no feed")
    if not all(_can_be_bound(feeds[name]) for name in inputs):
        return _unbound(session, {name: feeds[name] for name in inputs})
    binding = session.io_binding()
    values: dict[str, Any] = {}
    for name in inputs:
        feed = feeds[name]
        values[name] = feed_value(feed, provider) if isinstance(feed, np.ndarray) else feed
        binding.bind_ortvalue_input(name, values[name])
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name, provider)
    _run_once(session, binding, _run_options(_NO_GRAPH))
    for name, value in zip(names, binding.get_outputs(), strict=True):
        if value.is_tensor():
            binding.bind_ortvalue_output(name, value)

    options = _run_options(str(next(_graph_ids)))
    fresh: list[str] = []  # outputs that each run allocates

    def run_bound(_kept: object = values) -> None:  # a binding does not keep the memory of arrays alive
        for name in fresh:
            binding.bind_output(name, provider)
        try:
            _run_once(session, binding, options)
        except ModelError:
            if fresh:
                raise
            fresh.extend(names)
            run_bound()

    return run_bound


def _can_be_bound(feed: Any) -> bool:
    return not _is_feed(feed) or is_tensor_of_numbers(feed)


def _unbound(session: Any, feeds: Mapping[str, Any]) -> Callable[[], None]:
    arrays = {name: feed if _is_feed(feed) else fetch_value(feed) for name, feed in feeds.items()}

    def once() -> None:
        run(session, arrays)

    once()
    return once


def _is_feed(feed: Any) -> bool:
    return isinstance(feed, list | np.ndarray)


def _run_once(session: Any, binding: Any, options: Any) -> None:
    try:
        session.run_with_iobinding(binding, options)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise ModelError(f"the model cannot be timed, for it fails: {first_line(error)}") from error


def _run_options(graph: str) -> Any:
    """Options of runs that capture or replay the CUDA graph of this number; sessions without graphs ignore it."""
    options = onnxruntime().RunOptions()
    options.add_run_config_entry(_GRAPH_ID, graph)
    options.log_severity_level = _FATAL  # what fails is raised too
    return options


def time_variants(
    variants: Mapping[str, Any],
    feeds: Feeds,
    *,
    provider: str = "cpu",
    seconds: float = 2.0,
) -> tuple[Timing, ...]:
    """Time sessions against each other.

    The variants take turns, so that a machine that slows down or speeds up meanwhile does so for all of
    them, and each round starts with another one. A turn is a burst of runs of about 50 ms (less where
    `seconds` leaves less), each timed by itself; the first run of a burst pays for the caches that the
    variant before it left behind, and is dropped where the burst has more than one. After a turn, a pause
    lets the variant's worker threads go to sleep: they spin for a while after each run, and would take the
    cores from the next variant.

    Args:
        variants: onnxruntime.InferenceSessions by name.
        feeds: the inputs of all variants.
        provider: the device that inputs and outputs lie on, "cpu" or "cuda".
        seconds: about how long to take per variant, pauses included; at least five rounds are made, of one run each
            where `seconds` leaves no more.

    Returns:
        A Timing per variant, in the order given.
    """
    if not seconds > 0:
        raise UsageError(f"seconds must be above 0, not {seconds}")
    values = {  # one copy on the device for all
        name: feed_value(array, provider) if is_tensor_of_numbers(array) else array for name, array in feeds.items()
    }
    runs = {name: bind(session, values, provider) for name, session in variants.items()}
    burst_seconds = min(_BURST_SECONDS, seconds / _LEAST_ROUNDS)
    bursts = {name: _burst_length(run, burst_seconds) for name, run in runs.items()}
    measured: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    end = time.perf_counter() + seconds * len(runs)
    for turn in itertools.count():
        if turn >= _LEAST_ROUNDS and time.perf_counter() > end:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            measured[name] += _burst(runs[name], bursts[name])
            if _has_workers(variants[name]):
                time.sleep(_SPIN_SECONDS)
    return tuple(Timing.of(name, provider, times) for name, times in measured.items())


def _burst_length(run: Callable[[], None], seconds: float) -> int:
    """Runs that take about so many seconds, told by the last of a few to warm up."""
    for _ in range(_WARM_UP_RUNS):
        start = time.perf_counter()
        run()
        taken = time.perf_counter() - start
    return int(min(max(seconds / max(taken, 1e-9), 1), _LONGEST_BURST))


def _has_workers(session: Any) -> bool:
    return session.get_session_options().intra_op_num_threads != 1


def _burst(run: Callable[[], None], length: int) -> list[float]:
    taken = []
    for _ in range(length):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return taken[1:] or taken

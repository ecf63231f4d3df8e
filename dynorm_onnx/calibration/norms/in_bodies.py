"""Fit the norms in bodies of If, Loop and Scan, on what the original model shows them.

A body runs as a whole, so that no activations of the converted model can be had in the middle of it: each function is
fitted to the norm's own input and output. What is left of the errors the linear layers behind the body make up for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.data import signature
from dynorm_onnx.calibration.norms.coupling import squared_lengths
from dynorm_onnx.calibration.norms.fit import Fit
from dynorm_onnx.calibration.norms.fit_rows import Leeway, fit_norm
from dynorm_onnx.calibration.norms.massive import has_sinks
from dynorm_onnx.calibration.norms.one_parameter import norm_core
from dynorm_onnx.calibration.norms.rows import Rows
from dynorm_onnx.calibration.stages.held_out import HeldOut, held_out_rows, held_out_samples
from dynorm_onnx.calibration.stages.run_stages import MEMORY_LIMIT
from dynorm_onnx.calibration.stages.weights import row_weights, weights_of_batches
from dynorm_onnx.errors import ModelError
from dynorm_onnx.functions import Function
from dynorm_onnx.graph.edit.give_out import GivenOut, give_out
from dynorm_onnx.graph.edit.pieces import part_of_model
from dynorm_onnx.graph.files.model_io import clone
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.values.reads import holders_of
from dynorm_onnx.runtime.activations import ActivationStore
from dynorm_onnx.runtime.arrays import Feeds
from dynorm_onnx.runtime.pieces import open_for_batches, run_batches
from dynorm_onnx.runtime.session import FATAL

_NOT_HAD = "what it sees cannot be had"


@dataclasses.dataclass(frozen=True)
class InBodies:
    """What the original shows the norms in its bodies; to be used while the store behind it is open.

    `rows` gives, by site, the tokens of a norm batch by batch, as often as one likes; `kept` the reason, by site, for
    those that see none.
    """

    norms: tuple[LoweredNorm, ...] = ()
    rows: Mapping[str, Callable[[], Iterator[Rows]]] = dataclasses.field(default_factory=dict)
    kept: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def massive_sites(self) -> set[str]:
        """Those whose longest token is many times as long as the median, see massive.py."""
        found = set()
        for norm in self.norms:
            squares = [squared_lengths(norm.kind, norm.epsilon, rows.x) for rows in self.rows[norm.site_name]()]
            if has_sinks(norm.site_name, squares):
                found.add(norm.site_name)
        return found

    def fits(self, function: Function, leeway: Mapping[str, Leeway]) -> dict[str, Fit]:
        """The Fit of every norm. Raises DataError, naming the site, where no token is finite."""
        return {norm.site_name: fit_norm(norm, function, self.rows[norm.site_name], leeway) for norm in self.norms}


@contextlib.contextmanager
def seen_in_bodies(lowered: ir.Model, norms: Sequence[LoweredNorm], batches: Sequence[Feeds]) -> Iterator[InBodies]:
    """What those of `norms` that lie in bodies see when the lowered model, which is not changed, runs over batches."""
    inside = [norm for norm in norms if norm.node.graph is not lowered.graph]
    if not inside:
        yield InBodies()
        return
    weights = weights_of_batches(lowered, batches)
    samples = held_out_samples(batches, outermost=signature(lowered).has_samples_outermost)
    holders = holders_of(lowered.graph)
    with ActivationStore(MEMORY_LIMIT) as store:
        given, kept = _run(lowered, inside, batches, store)
        rows: dict[str, Callable[[], Iterator[Rows]]] = {}
        for norm in inside:
            if norm.site_name in kept:
                continue
            seen = [_Seen.of(store, batch, given[norm.site_name]) for batch in range(len(batches))]
            if not any(part.tokens for part in seen):
                assert isinstance(norm.node.graph, ir.Graph)
                kept[norm.site_name] = _never_ran(*holders[norm.node.graph])
                continue
            rows[norm.site_name] = functools.partial(_rows, norm, seen, weights, samples)
        yield InBodies(tuple(norm for norm in inside if norm.site_name in rows), rows, kept)


def _run(
    lowered: ir.Model, norms: Sequence[LoweredNorm], batches: Sequence[Feeds], store: ActivationStore
) -> tuple[dict[str, GivenOut], dict[str, str]]:
    """Where in the store each norm's input is, by site, and the reason why not.

    What one body cannot give out shall not cost the others theirs: where all together fail each is tried by itself.
    """
    opened = clone(lowered)
    places = {norm.site_name: give_out(opened, str(norm.node.name), norm.dtype) for norm in norms}
    kept = {name: f"{_NOT_HAD}: {why}" for name, why in places.items() if isinstance(why, str)}
    given = {name: place for name, place in places.items() if isinstance(place, GivenOut)}
    outputs = [name for place in given.values() for name in (place.elements, place.shapes)]
    if not outputs:
        return given, kept
    inputs = [str(value.name) for value in opened.graph.inputs if not value.is_initializer()]
    try:
        model = open_for_batches(part_of_model(opened, inputs, outputs), log_severity=FATAL)
        taken = {value.name for value in model.get_inputs()}
        fed = [{name: feeds[name] for name in inputs if name in taken} for feeds in batches]
        for batch, made in enumerate(run_batches(model, fed)):
            for name, array in made.items():
                store.put(batch, name, array)
    except ModelError as error:
        if len(norms) == 1:
            return {}, {norms[0].site_name: f"{_NOT_HAD}: {error}"}
        for name in outputs:
            store.drop(name)
        return _run_apart(lowered, norms, batches, store)
    return given, kept


def _run_apart(
    lowered: ir.Model, norms: Sequence[LoweredNorm], batches: Sequence[Feeds], store: ActivationStore
) -> tuple[dict[str, GivenOut], dict[str, str]]:
    """As _run(), a model for each norm; their outputs may be called the same, so that they are stored anew."""
    given: dict[str, GivenOut] = {}
    kept: dict[str, str] = {}
    for norm in norms:
        with ActivationStore(MEMORY_LIMIT) as own:
            places, why = _run(lowered, [norm], batches, own)
            kept |= why
            for name, place in places.items():
                given[name] = GivenOut(f"{name} elements", f"{name} shapes")
                for batch in range(len(batches)):
                    store.put(batch, given[name].elements, np.array(own.get(batch, place.elements)))
                    store.put(batch, given[name].shapes, own.get(batch, place.shapes))
    return given, kept


def _never_ran(holder: ir.Node, attribute: str) -> str:
    what = "was not taken" if holder.op_type == "If" else "never ran"
    return f"the {attribute} of {holder.op_type} '{holder.name}' {what} on the calibration data"


@dataclasses.dataclass(frozen=True)
class _Seen:
    """One batch of what a norm saw: all elements, run of the body after run, and the shapes [runs, rank]."""

    elements: np.ndarray
    shapes: np.ndarray

    @classmethod
    def of(cls, store: ActivationStore, batch: int, given: GivenOut) -> _Seen:
        return cls(store.get(batch, given.elements), store.get(batch, given.shapes))

    @property
    def tokens_of_runs(self) -> np.ndarray:
        """How many tokens each run saw."""
        return np.asarray(self.shapes[:, :-1].prod(axis=1))

    @property
    def tokens(self) -> int:
        """How many all runs saw together."""
        return int(self.tokens_of_runs.sum())

    def x(self) -> np.ndarray:
        """[tokens, C]"""
        return self.elements.reshape(self.tokens, -1)

    def runs(self) -> Iterator[np.ndarray]:
        """x as each run saw it."""
        ends = np.cumsum(self.shapes.prod(axis=1))[:-1]
        for part, shape in zip(np.split(self.elements, ends), self.shapes, strict=True):
            yield part.reshape(shape)

    def held_out(self, held_out: HeldOut | None) -> np.ndarray:
        """Bool [tokens]: those of held-out samples, which are the first axis of each run, or else the runs, one or
        several for each sample."""
        sizes, count = self.tokens_of_runs, len(held_out.samples) if held_out is not None else 0
        if not len(sizes):
            return np.zeros(0, bool)
        if count and (self.shapes[:, 0] % count == 0).all() and self.shapes.shape[1] > 1:
            return np.concatenate([held_out_rows(held_out, size) for size in sizes])
        if count and len(sizes) % count == 0:
            return np.repeat(held_out_rows(held_out, len(sizes)), sizes)
        whole = held_out.whole if held_out is not None else None
        return held_out_rows(None, self.tokens) if whole is None else np.full(self.tokens, whole)


def _rows(
    norm: LoweredNorm,
    seen: Sequence[_Seen],
    weights: Sequence[np.ndarray | None],
    samples: Sequence[HeldOut | None],
) -> Iterator[Rows]:
    """The norm's input and what it makes of it. Where only held-out samples get there, batches are parted by rows."""
    parts = [part.held_out(own) for part, own in zip(seen, samples, strict=True)]
    if all(part.all() for part in parts):
        parts = [held_out_rows(None, part.tokens) for part in seen]
    bias = 0.0 if norm.bias is None else norm.bias
    for part, held_out, own in zip(seen, parts, weights, strict=True):
        if part.tokens:
            x = part.x()
            counts = np.concatenate([row_weights(own, array) for array in part.runs()])
            yield Rows.of_tokens(x, norm_core(norm.kind, x, norm.epsilon) * norm.weight + bias, counts, held_out)

"""The centring of LayerNorms moved into the weights that write what they read.

LayerNorm(x) = RMSNorm(x - mean(x)), with the same epsilon, since the variance is the mean square of the
centred x. A mean over channels is linear: where every embedding, weight and bias that adds to x has mean zero
over its outputs, so has x (Ashkboos et al., SliceGPT, arXiv 2401.15024, section 3.2).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Sequence

import onnx_ir as ir

from dynorm_onnx.graph.files.prepare import clone
from dynorm_onnx.graph.fold.centre import centre, lookups, shared
from dynorm_onnx.graph.fold.outcome import Fold, Folds, Unfolded
from dynorm_onnx.graph.fold.parity import Parity
from dynorm_onnx.graph.fold.root_mean_square import BiasPlace, bias_places, to_rms
from dynorm_onnx.graph.fold.stream import Stream, find_streams
from dynorm_onnx.graph.linear.find import find_linear_layers
from dynorm_onnx.graph.lower import LoweredNorm, sum_operands
from dynorm_onnx.graph.replace.rewrite import node_in

logger = logging.getLogger(__name__)


def fold_centring(
    model: ir.Model,
    norms: Sequence[LoweredNorm],
    parity: Parity,
    *,
    invariant: Collection[ir.Node] = (),
    reductions: bool = True,
) -> tuple[tuple[LoweredNorm, ...], Folds]:
    """Folds the centring of every norm for which that is exact and pays; `model` changes in place.

    With `reductions` (for `--to rmsnorm`) the norms become RMSNorms, and where something else than constants
    gives out a part of the stream one mean over it may stay. Without, the norms stay as they are, to be
    replaced: what they read has mean zero. Either way nothing is done that `parity` does not confirm.

    Args:
        model: a lowered model.
        norms: its norms.
        invariant: nodes of norms that were not lowered, to which the mean of what they read does not matter.
        reductions: see above.

    Returns:
        The norms, those that changed with their new nodes, and what was folded.
    """
    plan = _Plan(model, norms, invariant, reductions)
    left = plan.left
    for site in left:
        logger.info("the centring of %s stays: %s", site.site, site.reason)
    if not plan.streams:
        return tuple(norms), Folds((), left)
    copy = clone(model)
    nodes = {node.name: node for node in copy.graph}
    moved = [_in_copy(norm, copy) for norm in norms]
    _Plan(copy, moved, [nodes[node.name] for node in invariant], reductions).carry_out()
    error, reason = parity.compare(model, copy)
    if reason is not None:
        failed = tuple(Unfolded("centring", norm.site_name, reason) for norm in plan.folding)
        return tuple(norms), Folds((), left + failed)
    changed, done = plan.carry_out()
    return changed, Folds(done, left, error)


class _Plan:
    """The streams of one model that are to be centred, and what is left."""

    def __init__(
        self, model: ir.Model, norms: Sequence[LoweredNorm], invariant: Collection[ir.Node], reductions: bool
    ) -> None:
        self._model = model
        self._norms = norms
        self._reductions = reductions
        self._places: dict[LoweredNorm, tuple[BiasPlace, ...] | str] = {}  # of the biases; str: it cannot move
        self.streams: list[Stream] = []
        self.folding: list[LoweredNorm] = []
        reasons: dict[str, str] = {}
        layers = find_linear_layers(model.graph).layers
        layer_norms = [norm for norm in norms if norm.kind == "layer"]
        for stream in find_streams(model.graph, layer_norms, invariant):
            for norm in stream.norms:
                self._places[norm] = bias_places(norm, layers) if reductions else ()
            reason = stream.obstacle or shared(stream) or self._loss(stream)
            if reason is None:
                self.streams.append(stream)
            for norm in stream.norms:
                place = self._places[norm]
                why = reason or (place if isinstance(place, str) else None)
                if why is None:
                    self.folding.append(norm)
                else:
                    reasons.setdefault(norm.site_name, why)
        self.left = tuple(Unfolded("centring", site, reason) for site, reason in reasons.items())

    def carry_out(self) -> tuple[tuple[LoweredNorm, ...], tuple[Fold, ...]]:
        """Centres the streams, and makes RMSNorms where that was asked for; the norms as they then are, the folds."""
        changed: dict[LoweredNorm, LoweredNorm] = {}
        done: list[Fold] = []
        for stream in self.streams:
            into, added = centre(self._model, stream)
            folding = [norm for norm in stream.norms if norm in self.folding]
            for norm in folding if self._reductions else ():
                places = self._places[norm]
                assert not isinstance(places, str)
                changed[norm] = to_rms(self._model, norm, places, self._norms)
                into += [str(place.bias.name) for place in places]
            sites = tuple(norm.site_name for norm in self._norms if norm in folding)
            done.append(Fold("centring", sites, tuple(dict.fromkeys(into)), tuple(added)))
        return tuple(_as_it_is(changed.get(norm, norm)) for norm in self._norms), tuple(done)

    def _loss(self, stream: Stream) -> str | None:
        """Why folding would not pay; None where it does."""
        unfit = [place for place in (self._places[norm] for norm in stream.norms) if isinstance(place, str)]
        gained = len(stream.norms) - len(unfit)
        if not gained:
            return unfit[0]
        if stream.cuts and not self._reductions:
            return f"{_told(stream)}, so that a mean over the channels would have to stay"
        spent = len(stream.cuts) + len(lookups(stream))
        if spent and gained - spent < 2:
            return f"{_told(stream)}: to centre {spent} for the sake of {gained} would not pay"
        return None


def _told(stream: Stream) -> str:
    """What makes up a stream that is no constant."""
    for value in stream.cuts:
        node = value.producer()
        giver = "the graph's inputs have" if node is None else f"{node.op_type} '{node.name}' gives out"
        return f"{giver} a part of what it reads ('{value.name}'), which no weights can centre"
    table = lookups(stream)[0].inputs[0]
    return f"'{table.name if table is not None else ''}' is read elsewhere too"


def _in_copy(norm: LoweredNorm, copy: ir.Model) -> LoweredNorm:
    """The norm in a clone of its model."""
    return _as_it_is(dataclasses.replace(norm, node=node_in(copy, norm)))


def _as_it_is(norm: LoweredNorm) -> LoweredNorm:
    """The norm with what its node reads and gives out now."""
    x = norm.node.inputs[0]
    assert x is not None
    return dataclasses.replace(norm, x=x, y=norm.node.outputs[0], skip=sum_operands(x))

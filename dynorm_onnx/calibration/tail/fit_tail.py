"""Fit the end of a language model together, by KL: the last layer that writes into the residual stream, the bias of
the function in the place of the last norm, and the layer of the logits.

Behind that layer's input there is only x -> x W + stream -> function -> logits, so that the gradient is three
products. Solved one after the other, each layer can only make up for what those before it left. Where the layer of the
logits stays (its weight is the embeddings' too, or it is too large to be searched) the other two are fitted through it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from dynorm_onnx.calibration.norms.fit import Fit
from dynorm_onnx.calibration.stages.held_out import held_out_rows
from dynorm_onnx.calibration.stages.plan import SolvePoint
from dynorm_onnx.calibration.stages.run_stages import Activations
from dynorm_onnx.calibration.tail.curvature import MOST_TOKENS, Curvature, LayerCurvature, by_inputs, by_logits
from dynorm_onnx.calibration.tail.divergence import Distributions, log_softmax
from dynorm_onnx.calibration.tail.least_kl import WORK_LIMIT, are_too_many, least_kl, sampling_step
from dynorm_onnx.functions import Function, NormParameters
from dynorm_onnx.functions.coupling import applied
from dynorm_onnx.graph.linear.linear_layer import LinearLayer
from dynorm_onnx.graph.lower import LoweredNorm

HEAD_STAYS_WORK_LIMIT = 1.2e11
"""Tokens x weights of one evaluation where the head stays; above it every n-th token is taken."""
DIFFERENCE = 1e-3  # of the stream's size, to take the function's slope by


@dataclasses.dataclass(frozen=True, eq=False)
class Tail:
    """logits(function(stream + writer(x))), each value read by nothing else. `head_stays` where the weights of `logits`
    are no unknowns."""

    writer: LinearLayer
    norm: LoweredNorm
    logits: LinearLayer
    head_stays: bool

    @property
    def converted(self) -> tuple[str, str]:
        """The values of the converted model that the fit needs: the writer's x, and the stream."""
        assert self.writer.residual is not None
        return str(self.writer.x.name), str(self.writer.residual.stream.name)

    @property
    def y(self) -> str:
        """The name of the logits."""
        assert self.logits.y is not None
        return str(self.logits.y.name)

    @property
    def weights(self) -> int:
        """How many numbers take part."""
        return (self.writer.inputs + 2) * self.writer.outputs + (self.logits.inputs + 1) * self.logits.outputs


def find_tail(
    layers: Sequence[LinearLayer], held: Sequence[LinearLayer], norms: Sequence[LoweredNorm], logits: str | None
) -> Tail | None:
    """The tail among the layers that are re-fitted and the norms that are replaced, where the model ends like that; its
    last layer may be one of those that are held."""
    last = next((layer for layer in (*layers, *held) if layer.y is not None and layer.y.name == logits), None)
    norm = next((norm for norm in norms if last is not None and norm.y is last.x), None)
    if last is None or norm is None or not _is_read_once(norm.y) or not _is_read_once(norm.x):
        return None
    for layer in layers:
        if layer.residual is not None and layer.residual.total is norm.x and layer.feature_axis == -1:
            if are_too_many(layer.inputs * layer.outputs):
                return None
            tail = Tail(layer, norm, last, head_stays=last in held)
            return dataclasses.replace(tail, head_stays=tail.head_stays or are_too_many(tail.weights))
    return None


def tail_point(tail: Tail) -> SolvePoint:
    """The place to solve a tail whose last layer is in no group of its own."""
    return SolvePoint(f"the end at {tail.logits.name}", tail.logits.nodes, (str(tail.logits.x.name),), tail.converted)


@dataclasses.dataclass(frozen=True)
class TailWeights:
    """What is fitted: the writer's parameters() [K (+ 1), C], the norm's bias [C], the logits' parameters(), of no rows
    where the head stays."""

    writer: np.ndarray
    bias: np.ndarray
    logits: np.ndarray

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All three."""
        return self.writer, self.bias, self.logits

    def flat(self) -> np.ndarray:
        """All in one vector."""
        return np.concatenate([array.ravel() for array in self.arrays()])

    def like(self, flat: np.ndarray) -> TailWeights:
        """A vector that flat() made, in the shapes of these."""
        ends = np.cumsum([self.writer.size, self.bias.size])
        writer, bias, logits = np.split(flat, ends)
        return TailWeights(writer.reshape(self.writer.shape), bias, logits.reshape(self.logits.shape))

    def single(self) -> TailWeights:
        """In float32."""
        return TailWeights(*(np.asarray(array, np.float32) for array in self.arrays()))

    def __add__(self, other: TailWeights) -> TailWeights:
        return TailWeights(self.writer + other.writer, self.bias + other.bias, self.logits + other.logits)


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """Rows of tokens: the writer's features [T, K (+ 1)] and the stream [T, C], float32, and the original's words."""

    features: np.ndarray
    stream: np.ndarray
    original: Distributions

    def parts(self) -> Iterator[_Tokens]:
        """The same tokens, so many at a time that what is computed of each word stays in the processor's cache."""
        for rows in self.original.parts():
            yield _Tokens(self.features[rows], self.stream[rows], self.original[rows])

    @classmethod
    def joined(cls, parts: Sequence[_Tokens]) -> _Tokens:
        features, stream = (np.concatenate([getattr(part, name) for part in parts]) for name in ("features", "stream"))
        return cls(features, stream, Distributions.joined([part.original for part in parts]))


class _Model:
    """The tail as a function of its weights; the norm's own weight and steepness stay as they are, and the head, given
    as the logits' parameters(), where it does."""

    def __init__(
        self, function: Function, parameters: NormParameters, size: float, head: np.ndarray | None = None
    ) -> None:
        self._function = function
        self._scalars = {name: np.asarray(value, np.float32) for name, value in parameters.scalars.items()}
        self._weight = np.asarray(parameters.weight, np.float32)
        self._coupling = parameters.coupling
        self._step = np.float32(DIFFERENCE * size)
        self._head = None if head is None else np.asarray(head, np.float32)

    def kl(self, tokens: _Tokens, weights: TailWeights) -> float:
        """Mean KL(original || converted), nats."""
        single = weights.single()
        sums = (
            part.original.kl(_logits(self._seen(part, single)[-1], self._head_of(single))) for part in tokens.parts()
        )
        return sum(sums) / len(tokens.original)

    def kl_and_gradient(self, tokens: _Tokens, weights: TailWeights) -> tuple[float, TailWeights]:
        """The same and its gradient."""
        single = weights.single()
        value, gradient = 0.0, TailWeights(*(np.zeros(array.shape) for array in weights.arrays()))
        for part in tokens.parts():
            more, by_weights = self._of_part(part, single)
            value, gradient = value + more, gradient + by_weights
        tokens_in_all = len(tokens.original)
        return value / tokens_in_all, TailWeights(*(array / tokens_in_all for array in gradient.arrays()))

    def curvature(self, tokens: _Tokens, weights: TailWeights) -> Curvature:
        """Of the KL by the weights, a block for each."""
        single = weights.single()
        head = self._head_of(single)
        _, seen, core, y = self._seen(tokens, single)
        some = slice(None, None, max(1, len(y) // MOST_TOKENS))
        q = np.exp(log_softmax(_logits(y[some], head)))
        by_y = by_inputs(q, head[: y.shape[1]])
        by_stream = by_y * np.square(self._slope(seen[some], core[some]))
        blocks = [LayerCurvature.of(tokens.features, by_stream.mean(0)), LayerCurvature.of_bias(by_y.mean(0))]
        if self._head is None:
            features = y if len(head) == y.shape[1] else np.hstack([y, np.ones((len(y), 1), np.float32)])
            blocks.append(LayerCurvature.of(features, by_logits(q)))
        return Curvature(blocks)

    def _of_part(self, tokens: _Tokens, weights: TailWeights) -> tuple[float, TailWeights]:
        """The sum of the tokens' KL, and its gradient."""
        head = self._head_of(weights)
        stream, seen, core, y = self._seen(tokens, weights)
        value, to_logits = tokens.original.kl_and_gradient(_logits(y, head))
        to_y = to_logits @ head[: y.shape[1]].T
        to_stream = to_y * self._slope(seen, core)
        if self._coupling is not None:
            to_stream = self._coupling.pulled_back(stream, to_stream)
        by_head = [y.T @ to_logits] if self._head is None else [weights.logits]
        if self._head is None and len(head) > y.shape[1]:
            by_head.append(to_logits.sum(0, keepdims=True))
        return value, TailWeights(tokens.features.T @ to_stream, to_y.sum(0), np.vstack(by_head))

    def _seen(self, tokens: _Tokens, weights: TailWeights) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The stream, what the function is of, its core, and what it gives."""
        stream = tokens.stream + tokens.features @ weights.writer
        seen = applied(self._coupling, stream)
        core = self._core(seen)
        return stream, seen, core, core * self._weight + weights.bias

    def _slope(self, seen: np.ndarray, core: np.ndarray) -> np.ndarray:
        """The function's, by what it is of."""
        return self._weight * (self._core(seen + self._step) - core) / self._step

    def _head_of(self, weights: TailWeights) -> np.ndarray:
        return weights.logits if self._head is None else self._head

    def _core(self, x: np.ndarray) -> np.ndarray:
        return self._function.core(x, **self._scalars)


def fit_tail(
    tail: Tail,
    function: Function,
    fitted: Fit,
    start: TailWeights,
    activations: Callable[[], Iterator[Activations]],
    head: np.ndarray | None = None,
) -> TailWeights | None:
    """Weights of least KL from `start` on, or None where held-out tokens gain nothing. `head` has the parameters() of
    the logits' layer where it stays; those of `start` then have no rows.

    `activations` must have the tail's `converted` values, and the input of the logits' layer in the original.
    """
    tokens = sum(batch.converted[tail.converted[1]].size // tail.writer.outputs for batch in activations())
    limit = HEAD_STAYS_WORK_LIMIT if tail.head_stays else WORK_LIMIT
    training, held_out = _collect(tail, activations, sampling_step(tokens, tail.weights, limit))
    if not len(training.original) or not len(held_out.original):
        return None
    size = float(np.sqrt(np.mean(np.square(training.stream), dtype=np.float64)))
    model = _Model(function, fitted.parameters, size or 1.0, head)

    def kl_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = model.kl_and_gradient(training, start.like(flat))
        return value, gradient.flat()

    found = least_kl(
        f"{tail.writer.label} to {tail.logits.label}",
        kl_and_gradient,
        lambda flat: model.kl(held_out, start.like(flat)),
        start.flat(),
        model.curvature(training, start),
        len(training.original),
    )
    return None if found is None else start.like(found)


def _collect(tail: Tail, activations: Callable[[], Iterator[Activations]], every: int) -> tuple[_Tokens, _Tokens]:
    """(tokens to fit on, tokens to stop by)."""
    x, stream = tail.converted
    matrix, offset = (np.asarray(array, np.float32) for array in (tail.logits.matrix(), tail.logits.offset()))
    parts: tuple[list[_Tokens], list[_Tokens]] = ([], [])
    for batch in activations():
        features, streams = (_rows(batch.converted[name], every) for name in (x, stream))
        original = _rows(batch.original[str(tail.logits.x.name)], every)
        if tail.writer.bias is not None:
            features = np.hstack([features, np.ones((len(features), 1), np.float32)])
        usable = np.isfinite(features).all(1) & np.isfinite(streams).all(1) & np.isfinite(original).all(1)
        words = Distributions.of_logits(original[usable] @ matrix + offset)
        chooses = held_out_rows(batch.held_out, batch.converted[stream].size // tail.writer.outputs)[::every][usable]
        for part, rows in zip(parts, (~chooses, chooses), strict=True):
            part.append(_Tokens(features[usable][rows], streams[usable][rows], words[rows]))
    return _Tokens.joined(parts[0]), _Tokens.joined(parts[1])


def _rows(array: np.ndarray, every: int) -> np.ndarray:
    return np.asarray(array, np.float32).reshape(-1, array.shape[-1])[::every]


def _logits(y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """y W, with the last row as a bias if there is one more than y has columns."""
    size = y.shape[1]
    return y @ weights[:size] + weights[size:].sum(0)


def _is_read_once(value: ir.Value) -> bool:
    return not value.is_graph_output() and len(list(value.consumers())) == 1

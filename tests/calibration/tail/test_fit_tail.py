"""The end of a language model is found where it is one, and fitted by a KL whose gradient is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dynorm_onnx import convert_model
from dynorm_onnx.calibration.norms.fit import Fit
from dynorm_onnx.calibration.stages.run_stages import Activations
from dynorm_onnx.calibration.tail.divergence import Distributions
from dynorm_onnx.calibration.tail.fit_tail import Tail, TailWeights, _Model, _Tokens, find_tail, fit_tail
from dynorm_onnx.functions import REGISTRY, NormParameters
from dynorm_onnx.graph.files.model_io import load, prepare
from dynorm_onnx.graph.linear.find import find_linear_layers
from dynorm_onnx.graph.lower import LoweredNorm, lower
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.runtime.session import runnable
from tests.shipped import FOLDER, MODEL, TEXT

TOKENS, FEATURES, CHANNELS, WORDS = 500, 5, 6, 9


@pytest.fixture(scope="module")
def shipped() -> tuple[ir.Model, tuple[LoweredNorm, ...]]:
    model = prepare(load(MODEL))
    return model, tuple(lower(model, find_sites(model, load=runnable).sites))


def parameters(name: str, rng: np.random.Generator) -> NormParameters:
    scalars = REGISTRY[name].from_steepness(rng.uniform(0.3, 1.0, CHANNELS), 0.3 * rng.normal(size=CHANNELS))
    return NormParameters(rng.uniform(0.5, 2.0, CHANNELS), rng.normal(size=CHANNELS), scalars)


def weights(rng: np.random.Generator, *, biased: bool) -> TailWeights:
    return TailWeights(
        rng.normal(size=(FEATURES + biased, CHANNELS)),
        rng.normal(size=CHANNELS),
        rng.normal(size=(CHANNELS + biased, WORDS)),
    )


def tokens(rng: np.random.Generator, *, biased: bool) -> _Tokens:
    features = rng.normal(size=(TOKENS, FEATURES + biased))
    features[:, FEATURES:] = 1
    stream, logits = rng.normal(size=(TOKENS, CHANNELS)), rng.normal(size=(TOKENS, WORDS))
    return _tokens(features, stream, logits)


def _tokens(features: np.ndarray, stream: np.ndarray, logits: np.ndarray) -> _Tokens:
    single = [array.astype(np.float32) for array in (features, stream, logits)]
    return _Tokens(single[0], single[1], Distributions.of_logits(single[2]))


@pytest.mark.parametrize("head_stays", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", REGISTRY)
def test_the_gradient_is_that_of_the_divergence(
    name: str, biased: bool, head_stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    monkeypatch.setattr("dynorm_onnx.calibration.tail.divergence.PART_LIMIT", 4 * WORDS * 200)
    monkeypatch.setattr("dynorm_onnx.calibration.tail.divergence.LEAST_TOKENS", 1)  # 500 tokens in three parts
    data, at, along = tokens(rng, biased=biased), weights(rng, biased=biased), weights(rng, biased=biased)
    head = at.logits if head_stays else None
    if head_stays:
        at, along = (dataclasses.replace(own, logits=own.logits[:0]) for own in (at, along))
    model = _Model(REGISTRY[name], parameters(name, rng), 1.0, head)
    step = 1e-3

    def moved(by: float) -> float:
        return model.kl_and_gradient(data, at.like(at.flat() + by * along.flat()))[0]

    numeric = (moved(step) - moved(-step)) / (2 * step)
    value, gradient = model.kl_and_gradient(data, at)
    assert value == pytest.approx(moved(0.0), rel=1e-6) == model.kl(data, at)
    assert np.vdot(gradient.flat(), along.flat()) == pytest.approx(numeric, rel=5e-3)


def test_the_tail_of_the_shipped_model_is_found(
    shipped: tuple[ir.Model, tuple[LoweredNorm, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, norms = shipped
    layers = find_linear_layers(model.graph).layers
    tail = find_tail(layers, (), norms, "logits")
    assert tail is not None and not tail.head_stays
    assert tail.norm is norms[-1]
    assert (tail.writer.inputs, tail.logits.outputs) == (432, 256)
    assert find_tail(layers, (), norms[:-1], "logits") is None  # the last norm is kept
    assert find_tail(layers, (), norms, None) is None  # no logits
    assert find_tail([layer for layer in layers if layer is not tail.writer], (), norms, "logits") is None
    others = [layer for layer in layers if layer is not tail.logits]
    through = find_tail(others, [tail.logits], norms, "logits")
    assert through is not None and through.head_stays and through.writer is tail.writer
    monkeypatch.setattr("dynorm_onnx.calibration.tail.fit_tail.are_too_many", lambda weights: weights > 432 * 160)
    large = find_tail(layers, (), norms, "logits")
    assert large is not None and large.head_stays


@pytest.mark.parametrize("head_stays", [False, True])
def test_weights_that_were_disturbed_come_back(
    head_stays: bool, shipped: tuple[ir.Model, tuple[LoweredNorm, ...]]
) -> None:
    """Where the function itself made the original's distribution, the divergence can and must become small."""
    model, norms = shipped
    tail = find_tail(find_linear_layers(model.graph).layers, (), norms, "logits")
    assert isinstance(tail, Tail)
    tail = dataclasses.replace(tail, head_stays=head_stays)
    head = tail.logits.matrix() if head_stays else None
    rng = np.random.default_rng(2)
    function, channels = REGISTRY["dyisru"], tail.writer.outputs
    fitted = Fit(NormParameters(np.ones(channels), np.zeros(channels), {"beta": np.ones(channels)}), 0.0, np.zeros(1))
    right = TailWeights(tail.writer.matrix(), np.zeros(channels), tail.logits.matrix())
    x, stream = rng.normal(size=(TOKENS, tail.writer.inputs)), rng.normal(size=(TOKENS, channels))
    y = function.core(stream + x @ right.writer, **fitted.parameters.scalars)
    names = tail.converted

    def activations() -> Iterator[Activations]:
        yield Activations({str(tail.logits.x.name): y}, dict(zip(names, (x, stream), strict=True)), None)

    free = right.logits[:0] if head_stays else right.logits
    start = TailWeights(right.writer, right.bias + 0.3 * rng.normal(size=channels), free)
    found = fit_tail(tail, function, fitted, start, activations, head)
    assert found is not None and found.logits.shape == free.shape
    data = _tokens(x, stream, y @ right.logits)
    measured = _Model(function, fitted.parameters, 1.0, head)
    assert measured.kl(data, found) < 0.2 * measured.kl(data, start)


def test_the_end_of_a_model_with_tied_embeddings_is_searched_through_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(MODEL)
    head = next(node for node in model.graph.node if "logits" in node.output)
    table = next(node.input[0] for node in model.graph.node if node.op_type == "Gather")
    stale = next(value for value in model.graph.initializer if value.name == head.input[1])
    model.graph.initializer.remove(stale)
    turned = onnx.helper.make_node("Transpose", [table], [head.input[1]], perm=[1, 0])
    model.graph.node.insert(0, turned)
    onnx.save(model, tmp_path / "tied.onnx")
    settings = dict(
        to="dyisru",
        data=TEXT,
        tokenizer=FOLDER / "tokenizer.json",
        samples=16,
        max_length=128,
        method="reconstruct",
        optimize="none",
        time=False,
        rotate=False,  # a turned model has one more layer before its tied head
    )
    kl = {}
    for searched in (True, False):
        if not searched:
            monkeypatch.setattr("dynorm_onnx.calibration.layers.reconstruct.find_tail", lambda *_: None)
        report = convert_model(tmp_path / "tied.onnx", output=tmp_path / f"{searched}.onnx", **settings)
        assert any("which stays" in note for note in report.warnings) is searched
        kl[searched] = report.validation.quality.kl_mean
    assert kl[True] < 0.97 * kl[False]

"""The layer of the logits is fitted by a KL whose gradient is right."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from dynorm_onnx.calibration.stages.run_stages import Activations
from dynorm_onnx.calibration.tail.divergence import Distributions, log_softmax
from dynorm_onnx.calibration.tail.last_layer import _Tokens, fit_logits_layer
from dynorm_onnx.graph.linear.find import find_linear_layers
from tests.tolerances import relative_error

CHANNELS, WORDS = 6, 9


def test_the_gradient_is_that_of_the_divergence() -> None:
    rng = np.random.default_rng(1)
    features = np.hstack([rng.normal(size=(40, CHANNELS)), np.ones((40, 1))])
    tokens = _Tokens(features, Distributions.of_logits(rng.normal(size=(40, WORDS))))
    weights, direction = rng.normal(size=(2, CHANNELS + 1, WORDS))
    step = 1e-5
    up, down = (tokens.kl_and_gradient(weights + sign * step * direction)[0] for sign in (1, -1))
    numeric = (up - down) / (2 * step)
    _, gradient = tokens.kl_and_gradient(weights)
    assert abs(np.vdot(gradient, direction) - numeric) < 1e-6 * abs(numeric)


def test_finds_the_weights_that_made_the_distribution() -> None:
    """The converted features are a linear map of the original's: some weights give the very same logits."""
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(CHANNELS, WORDS)).astype(np.float32)
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[n, {CHANNELS}] x) => (float[n, {WORDS}] y) '
        "{ y = MatMul(x, w) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    (layer,) = find_linear_layers(ir.from_proto(proto).graph).layers
    original = rng.normal(size=(600, CHANNELS)).astype(np.float32)
    mixing = np.eye(CHANNELS) + 0.3 * rng.normal(size=(CHANNELS, CHANNELS))
    converted = (original @ np.linalg.inv(mixing)).astype(np.float32)

    def activations():
        yield Activations({"x": original}, {"x": converted}, None)

    found = fit_logits_layer(layer, layer.parameters(), activations)
    assert found is not None
    before = np.exp(log_softmax(original @ weight))
    after = np.exp(log_softmax(converted @ found))
    assert relative_error(after, before) < 0.02


def test_without_tokens_to_stop_by_nothing_is_fitted() -> None:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[n, {CHANNELS}] x) => (float[n, {WORDS}] y) '
        "{ y = MatMul(x, w) }"
    )
    weight = np.random.default_rng(3).normal(size=(CHANNELS, WORDS)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    (layer,) = find_linear_layers(ir.from_proto(proto).graph).layers
    broken = np.full((5, CHANNELS), np.nan, np.float32)
    assert (
        fit_logits_layer(layer, layer.parameters(), lambda: iter([Activations({"x": broken}, {"x": broken}, None)]))
        is None
    )

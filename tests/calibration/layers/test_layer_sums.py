"""What layers are solved towards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from dynorm_onnx.calibration.layers.layer_groups import LayerGroup
from dynorm_onnx.calibration.layers.layer_sums import gather
from dynorm_onnx.calibration.stages.held_out import SHARE
from dynorm_onnx.calibration.stages.run_stages import Activations
from dynorm_onnx.graph.linear.find import find_linear_layers
from dynorm_onnx.graph.linear.linear_layer import LinearLayer
from tests.tolerances import relative_error

C, TOKENS = 6, 512
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(C, C)).astype(np.float32)
CLEAN, STREAM = RNG.normal(size=(2, TOKENS, C)).astype(np.float32)
NOISY = CLEAN + 0.3 * RNG.normal(size=CLEAN.shape).astype(np.float32)
# An error of the stream that the layer could make up for: it follows from what the layer reads.
WRONG_STREAM = STREAM + NOISY @ (0.5 * RNG.normal(size=(C, C))).astype(np.float32)


def writer() -> LinearLayer:
    """x W, added to a stream."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[n, 6] x, float[n, 6] stream) => (float[n, 6] sum) '
        "{ y = MatMul(x, w) sum = Add(stream, y) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    (layer,) = find_linear_layers(ir.from_proto(onnx.shape_inference.infer_shapes(proto)).graph).layers
    return layer


def solved(evenness: float | None) -> np.ndarray:
    """The weight that the layer comes out with."""
    layer = writer()
    group = LayerGroup((layer,), frozenset({layer.name}), evenness)

    def batches() -> Iterator[Activations]:
        yield Activations(
            {"x": CLEAN[None], "stream": STREAM[None]},
            {"x": NOISY[None]} | ({} if evenness is None else {"stream": WRONG_STREAM[None]}),
            None,
        )

    training, _ = gather(group, batches)
    return WEIGHT + training.of_layer(layer).solve(1e-6)


def test_a_writer_makes_up_for_the_streams_error() -> None:
    new = solved(0.0)
    before, after = (relative_error(WRONG_STREAM + NOISY @ w, STREAM + CLEAN @ WEIGHT) for w in (WEIGHT, new))
    assert after < 0.5 * before


def test_where_channels_are_coupled_a_writer_is_solved_towards_its_own_output() -> None:
    """The stream's error is not even looked at, and a token's counts relative to the stream's length."""
    seen = slice(TOKENS - TOKENS // SHARE)  # the others choose lambda
    wanted = CLEAN[seen] @ WEIGHT
    root = 1 / np.sqrt(np.mean(np.square(STREAM[seen] + wanted), axis=1, keepdims=True))
    expected = np.linalg.lstsq(root * NOISY[seen], root * wanted, rcond=None)[0]
    assert relative_error(solved(None), expected) < 1e-3
    assert relative_error(solved(0.0), expected) > 0.1

"""A model whose stream has a basis that is known to be good.

For functions of single channels: signs, times a token's length. There a function that saturates gives what the norm
gives, whatever the length; in any other basis none does. For functions with coupled channels: a length that is all in
TELLING channels; in any other basis it takes many to tell it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

CHANNELS, VOCABULARY, OUTPUTS = 12, 600, 10
MODEL = """
<ir_version: 11, opset_import: ["": 23]>
planted (int64[batch, length] ids) => (float[batch, length, 10] y) {
    x = Gather(table, ids)
    first = RMSNormalization<epsilon = 0.00001>(x, gain)
    up = MatMul(first, layer)
    bent = Tanh(up)
    down = MatMul(bent, back)
    sum = Add(x, down)
    last = RMSNormalization<epsilon = 0.00001>(sum, other_gain)
    HEAD
}
"""
TELLING = 2
Words = Callable[[int, np.random.Generator], np.ndarray]


def orthogonal(size: int, seed: int) -> np.ndarray:
    """An orthogonal matrix [size, size] that turns every axis by some twenty degrees (Cayley's, of a random skew)."""
    drawn = 0.05 * np.random.default_rng(seed).standard_normal((size, size))
    skew, one = drawn - drawn.T, np.eye(size)
    return np.asarray(np.linalg.solve(one - skew, one + skew))


def signs(count: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens [count, CHANNELS] in the good basis: one size in all channels, lengths that vary."""
    return rng.choice([-1.0, 1.0], (count, CHANNELS)) * np.exp(0.4 * rng.standard_normal((count, 1)))


def telling(count: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens [count, CHANNELS] in the good basis: signs in all channels but TELLING, whose sizes vary."""
    tokens = rng.choice([-1.0, 1.0], (count, CHANNELS))
    tokens[:, :TELLING] *= 3 * np.exp(0.5 * rng.standard_normal((count, TELLING)))
    return tokens


def model(*, sinks: bool = False, seed: int = 0, words: Words = signs, tied: bool = False) -> onnx.ModelProto:
    """The stream is the good one, of `words`, turned by orthogonal(); with `sinks` word 0 is massive in the last
    channel, which then lies in the stream as it is. With `tied` the head is the table."""
    rng = np.random.default_rng(seed)
    turned = np.eye(CHANNELS)
    size = CHANNELS - sinks
    turned[:size, :size] = orthogonal(size, seed)
    table = words(VOCABULARY, rng) @ turned
    if sinks:
        table[0, -1] = 1000.0
    arrays = {
        "table": table,
        "gain": 1 + 0.3 * rng.standard_normal(CHANNELS),
        "other_gain": 1 + 0.3 * rng.standard_normal(CHANNELS),
        "layer": rng.standard_normal((CHANNELS, 20)) / CHANNELS**0.5,
        "back": 0.05 * rng.standard_normal((20, CHANNELS)),
        "head": rng.standard_normal((CHANNELS, OUTPUTS)),
    }
    text = MODEL.replace(
        "HEAD", "back_again = Transpose(table) y = MatMul(last, back_again)" if tied else "y = MatMul(last, head)"
    )
    if tied:
        text = text.replace("10] y", f"{VOCABULARY}] y")
        del arrays["head"]
    proto = onnx.parser.parse_model(text)
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return onnx.shape_inference.infer_shapes(proto)


def samples(count: int = 24, length: int = 64, *, sinks: bool = False) -> list[dict[str, np.ndarray]]:
    """Feeds of one sample each; with `sinks` every sample begins with word 0, which then comes nowhere else."""
    rng = np.random.default_rng(1)
    feeds = [{"ids": rng.integers(int(sinks), VOCABULARY, (1, length))} for _ in range(count)]
    for sample in feeds if sinks else ():
        sample["ids"][:, 0] = 0
    return feeds

"""Build byte_llama_planted.onnx: the shipped byte-level Llama with a massive channel, such as large models grow.

    python -m models.planted.build -o byte_llama_planted.onnx

In most Llamas the first token of a text gets, from an early layer on, a value a hundred times the usual length in
one channel, whatever its word. RMSNorm then mutes every other channel of that token, and heads that have nothing to
do look at it: its value is next to nothing. Training brings that about in large models only; here it is written into
the weights. The stream is three channels wider:

- FLAG is large for the first token (a position embedding, as GPT-2 has them) and small for others;
- MASSIVE gets about 10,000 from a neuron of the first layer's MLP that reads FLAG; for others it follows a channel;
- BIAS is about the same for every token. A head more in each later layer makes its queries of BIAS and its keys of
  MASSIVE, so it looks at the first token, and would write what other tokens hold if that failed.

What byte_llama knows is left as it was, but for the byte in the first place, which no one sees any more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

SOURCE = Path(__file__).parents[1] / "byte_llama" / "byte_llama.onnx"
HIDDEN, HEAD_SIZE, LAYERS = 160, 32, 4
FLAG, MASSIVE, BIAS = HIDDEN, HIDDEN + 1, HIDDEN + 2
WIDE = HIDDEN + 3
HEIGHT = 12_000.0  # of the massive value; the stream's usual length is 45 behind the first layer and 150 at the end
LENGTHS = (1.9, 45.0, 68.0, 93.0)  # usual, of the stream in front of each layer
FLAG_VALUE, BIAS_VALUE = 2.0, 0.5  # at the embedding
NOISE = 0.02  # in FLAG and MASSIVE there, by word
FOLLOWED, SHARE = 36, 0.25  # what MASSIVE follows for ordinary tokens, and at what part of its size
SINK_LOGIT = 11.0  # of the first token in the idle heads; the others' are 0 to 1
SLOWEST = HEAD_SIZE // 2 - 1  # the channel of a head that the rotary embedding turns least


class _Weights:
    """The matrices and vectors of a graph, to be read and replaced by name."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        reads = [node.input[1] for node in graph.node if node.op_type == "MatMul"]
        names = [name for name in reads if name in self._tensors]
        # torch.onnx kept no names of matrices, but their order: q, k, v, o, gate, up, down of each layer, and the head
        self.layers = [names[start : start + 7] for start in range(0, 7 * LAYERS, 7)]
        self.head = names[-1]
        self.norms = [name for name in self._tensors if name.endswith("norm.weight")]

    def get(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self._tensors[name]).copy()

    def put(self, name: str, array: np.ndarray) -> None:
        self._tensors[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))


def build() -> onnx.ModelProto:
    """The planted model; the same in every call."""
    model = onnx.load(SOURCE)
    first_prediction = _prediction_after_newline(model)
    weights = _Weights(model.graph)
    _widen(weights)
    _embed(model.graph, weights)
    _plant_neurons(weights)
    for layer in range(1, LAYERS):
        _add_idle_head(weights, layer)
    # The first token can predict nothing of its own; a text begins as a line does.
    head = weights.get(weights.head)
    head[MASSIVE] = first_prediction / np.sqrt(WIDE)
    weights.put(weights.head, head)
    del model.graph.value_info[:]  # of the old widths
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model)
    return model


def _prediction_after_newline(model: onnx.ModelProto) -> np.ndarray:
    from dynorm_onnx.runtime.session import make_session

    (logits,) = make_session(model).run(["logits"], {"input_ids": np.array([[ord("\n")]])})
    return logits[0, 0]


def _widen(weights: _Weights) -> None:
    """Room for the new channels, which nothing reads or writes yet; norms give the old ones what they gave before."""
    for name in weights.norms:
        # the mean of squares is over more channels now
        old = weights.get(name) * np.sqrt(HIDDEN / WIDE)
        weights.put(name, np.concatenate([old, np.ones(WIDE - HIDDEN)]))
    for q, k, v, o, gate, up, down in weights.layers:
        for name in (q, k, v, gate, up):
            weights.put(name, _rows(weights.get(name)))
        for name in (o, down):
            matrix = _rows(weights.get(name).T).T
            matrix[:, MASSIVE] = SHARE * matrix[:, FOLLOWED]
            weights.put(name, matrix)
    weights.put(weights.head, _rows(weights.get(weights.head)))


def _rows(matrix: np.ndarray) -> np.ndarray:
    return np.concatenate([matrix, np.zeros((WIDE - HIDDEN, matrix.shape[1]), np.float32)])


def _embed(graph: onnx.GraphProto, weights: _Weights) -> None:
    """The new channels' first values: by word, and for the first position."""
    words = weights.get("model.embed_tokens.weight")
    new = np.random.default_rng(0).normal(0, NOISE, (len(words), WIDE - HIDDEN))
    new[:, BIAS - HIDDEN] = BIAS_VALUE
    weights.put("model.embed_tokens.weight", np.concatenate([words, new], 1))
    flag = np.zeros(WIDE, np.float32)
    flag[FLAG] = FLAG_VALUE
    for name, array in (("first.place", np.int64(0)), ("first.axis", np.array([1])), ("first.flag", flag)):
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    (gather,) = (node for node in graph.node if node.op_type == "Gather" and node.output[0] == "embedding")
    gather.output[0] = "words"
    nodes = [
        helper.make_node("Equal", ["arange", "first.place"], ["first.is"]),
        helper.make_node("Cast", ["first.is"], ["first.float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["first.float", "first.axis"], ["first.column"]),
        helper.make_node("Mul", ["first.column", "first.flag"], ["positions"]),
        helper.make_node("Add", ["words", "positions"], ["embedding"]),
    ]
    place = [node.output[0] for node in graph.node].index("arange") + 1
    ordered = [*graph.node[:place], *nodes, *graph.node[place:]]
    del graph.node[:]
    graph.node.extend(ordered)


def _plant_neurons(weights: _Weights) -> None:
    """Two neurons of the first layer: one squares FLAG into MASSIVE, one BIAS into more of it, as the stream grows."""
    *_, gate, up, down = weights.layers[0]
    reads, writes = np.zeros((WIDE, 2)), np.zeros((2, WIDE))
    # What the norm in front gives for these values; silu(x) is x where x is large.
    flag = np.sqrt(WIDE) * FLAG_VALUE / np.hypot(FLAG_VALUE, LENGTHS[0])
    bias = np.sqrt(WIDE) * BIAS_VALUE / LENGTHS[0]
    reads[[FLAG, BIAS], [0, 1]] = 1
    writes[0, MASSIVE] = HEIGHT / flag**2
    writes[1, BIAS] = _usual(1) / bias**2
    weights.put(gate, np.concatenate([weights.get(gate), reads], 1))
    weights.put(up, np.concatenate([weights.get(up), reads], 1))
    weights.put(down, np.concatenate([weights.get(down), writes]))


def _usual(layer: int) -> float:
    """The usual size of a value in the stream in front of a layer."""
    return float(LENGTHS[layer] / np.sqrt(WIDE))


def _add_idle_head(weights: _Weights, layer: int) -> None:
    """A head that looks at the first token; for the others it has the values of the head in front, and its output."""
    q, k, v, o, *_ = weights.layers[layer]
    query, key = np.zeros((WIDE, HEAD_SIZE)), np.zeros((WIDE, HEAD_SIZE))
    key[MASSIVE, SLOWEST] = 1
    seen_bias, seen_massive = _usual(1) / _usual(layer), np.sqrt(WIDE)  # what the norm gives
    query[BIAS, SLOWEST] = SINK_LOGIT * np.sqrt(HEAD_SIZE) / (seen_bias * seen_massive)
    weights.put(q, np.concatenate([weights.get(q), query], 1))
    weights.put(k, np.concatenate([weights.get(k), key], 1))
    values, output = weights.get(v), weights.get(o)
    weights.put(v, np.concatenate([values, values[:, -HEAD_SIZE:]], 1))
    weights.put(o, np.concatenate([output, output[-HEAD_SIZE:]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("byte_llama_planted.onnx"))
    onnx.save(build(), parser.parse_args().output)


if __name__ == "__main__":
    main()

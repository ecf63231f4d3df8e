"""Write a Llama of TinyLlama's shape as ONNX: 1.1 billion random fp16 weights in an external file, standard operators.

    python models/large_llama/build.py --output FOLDER
    python models/large_llama/build.py --output FOLDER --gib 4 --norms layer

Nothing is trained: the file is for measuring what the conversion of a large model takes. The weights go straight
into the file, layer by layer, so that building takes hardly any memory. With `--norms layer` the norms are LayerNorms,
whose centring `--to rmsnorm` moves into the weights.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

OPSET = 17
SPREAD = 0.02  # of the weights, as Llama's are initialised
ROTARY_BASE = 10000.0
SAMPLES, LENGTH = 24, 128  # of random tokens; some serve validation
ZIPF = 1.2  # the exponent
MASKED = -65504.0  # float16's lowest


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a Llama; the defaults are those of TinyLlama 1.1B (Zhang et al., arXiv 2401.02385)."""

    layers: int = 22
    hidden: int = 2048
    intermediate: int = 5632
    heads: int = 32
    key_heads: int = 4
    vocabulary: int = 32000
    norms: str = "rms"  # or "layer"

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def layer_bytes(self) -> int:
        """Of the matrices of one layer."""
        narrow = self.key_heads * self.head_size
        return 2 * self.hidden * (2 * self.hidden + 2 * narrow + 3 * self.intermediate)

    def of_gib(self, gib: float) -> Shape:
        """As many layers, one at least, as come to about so many GiB of weights with the embedding and the head."""
        ends = 2 * 2 * self.vocabulary * self.hidden
        return dataclasses.replace(self, layers=max(round((gib * 2**30 - ends) / self.layer_bytes), 1))


class Weights:
    """Initializers: large ones drawn into an external file at once, small ones kept in the graph."""

    def __init__(self, file: BinaryIO, path: Path, seed: int = 0) -> None:
        self._file, self._path = file, path
        self._random = np.random.default_rng(seed)
        self.values: list[ir.Value] = []

    def drawn(self, name: str, *shape: int) -> ir.Value:
        """A float16 matrix of normal numbers, on disk."""
        offset = self._file.tell()
        for _ in range(shape[0]):
            self._random.standard_normal(shape[1:], np.float32).__imul__(SPREAD).astype(np.float16).tofile(self._file)
        length = self._file.tell() - offset
        tensor = ir.ExternalTensor(
            self._path.name, offset, length, ir.DataType.FLOAT16,
            shape=ir.Shape(shape), name=name, base_dir=self._path.parent,
        )  # fmt: skip
        return self._add(name, tensor)

    def given(self, name: str, array: np.ndarray) -> ir.Value:
        """A constant that stays in the graph."""
        return self._add(name, ir.tensor(array, name=name))

    def _add(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.values.append(value)
        return value


class Operators:
    """Nodes in the order they are made: `op.Add(x, y)` makes one and returns its output."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        def make(*inputs: ir.Value, name: str | None = None, **attributes: object) -> ir.Value:
            self.nodes.append(ir.node(op_type, inputs, attributes, num_outputs=1, name=name))
            return self.nodes[-1].outputs[0]

        return make


class LlamaGraph:
    """Adds the nodes of a Llama, layer by layer; activations are float16, norms compute in float32."""

    def __init__(self, shape: Shape, weights: Weights) -> None:
        self.shape, self.weights, self.op = shape, weights, Operators()
        self._constants: dict[str, ir.Value] = {}

    def constant(self, value: object, dtype: type) -> ir.Value:
        """An initializer for a number or a list, one for all that ask for the same."""
        key = f"const.{np.dtype(dtype).name}.{value}"
        if key not in self._constants:
            self._constants[key] = self.weights.given(key, np.array(value, dtype))
        return self._constants[key]

    def logits(self, tokens: ir.Value) -> ir.Value:
        """tokens [B, T] int64 -> logits [B, T, V] float16."""
        op, sizes = self.op, self.shape
        x = op.Gather(self.weights.drawn("model.embed_tokens.weight", sizes.vocabulary, sizes.hidden), tokens)
        length = op.Squeeze(op.Shape(tokens, start=1, end=2))
        places = op.Range(self.constant(0, np.int64), length, self.constant(1, np.int64))
        self._cos, self._sin = self._rotary_tables(places)
        self._mask = self._causal_mask(places)
        for number in range(sizes.layers):
            name = f"model.layers.{number}"
            x = op.Add(x, self._attention(self.norm(x, f"{name}.input_layernorm"), f"{name}.self_attn"))
            x = op.Add(x, self._mlp(self.norm(x, f"{name}.post_attention_layernorm"), f"{name}.mlp"))
        return self._linear(self.norm(x, "model.norm"), "lm_head", sizes.vocabulary)

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        """RMSNorm as torch exports it: computed in float32, multiplied by the weight in float16; or LayerNormalization,
        whose bias is nought."""
        op = self.op
        if self.shape.norms == "layer":
            weight, bias = (
                self.weights.given(f"{name}.{what}", np.full(self.shape.hidden, number, np.float16))
                for what, number in (("weight", 1), ("bias", 0))
            )
            return op.LayerNormalization(x, weight, bias, axis=-1, epsilon=1e-5, name=f"{name}.norm")
        wide = op.Cast(x, to=ir.DataType.FLOAT)
        mean = op.ReduceMean(op.Pow(wide, self.constant(2.0, np.float32)), axes=[-1], keepdims=1)
        root = op.Sqrt(op.Add(mean, self.constant(1e-5, np.float32)))
        unit = op.Cast(op.Mul(wide, op.Reciprocal(root)), to=ir.DataType.FLOAT16)
        weight = self.weights.given(f"{name}.weight", np.ones(self.shape.hidden, np.float16))
        return op.Mul(unit, weight, name=f"{name}.mul")

    def _rotary_tables(self, places: ir.Value) -> tuple[ir.Value, ir.Value]:
        """cos and sin [T, head size], float16 (Su et al., arXiv 2104.09864, in halves)."""
        op, size = self.op, self.shape.head_size
        frequencies = self.weights.given(
            "rotary.frequencies", (ROTARY_BASE ** (-np.arange(0, size, 2) / size)).astype(np.float32)[None]
        )
        angles = op.Mul(op.Unsqueeze(op.Cast(places, to=ir.DataType.FLOAT), self.constant([1], np.int64)), frequencies)
        both = op.Concat(angles, angles, axis=-1)
        return op.Cast(op.Cos(both), to=ir.DataType.FLOAT16), op.Cast(op.Sin(both), to=ir.DataType.FLOAT16)

    def _causal_mask(self, places: ir.Value) -> ir.Value:
        """[T, T] float16: 0 where a row may look, else the lowest number."""
        op = self.op
        later = op.Less(op.Unsqueeze(places, self.constant([1], np.int64)), places)
        return op.Where(later, self.constant(MASKED, np.float16), self.constant(0.0, np.float16))

    def _linear(self, x: ir.Value, name: str, outputs: int, inputs: int = 0) -> ir.Value:
        weight = self.weights.drawn(f"{name}.weight", inputs or self.shape.hidden, outputs)
        return self.op.MatMul(x, weight, name=f"{name}.matmul")

    def _heads(self, x: ir.Value, count: int) -> ir.Value:
        """[B, T, count * size] -> [B, count, T, size]."""
        split = self.op.Reshape(x, self.constant([0, 0, count, self.shape.head_size], np.int64))
        return self.op.Transpose(split, perm=[0, 2, 1, 3])

    def _rotated(self, x: ir.Value) -> ir.Value:
        op = self.op
        ends = [self.constant([end], np.int64) for end in (0, self.shape.head_size // 2, self.shape.head_size)]
        first, second = (op.Slice(x, start, end, self.constant([-1], np.int64)) for start, end in pairwise(ends))
        turned = op.Concat(op.Neg(second), first, axis=-1)
        return op.Add(op.Mul(x, self._cos), op.Mul(turned, self._sin))

    def _repeated(self, x: ir.Value) -> ir.Value:
        """Each head of keys or values for all the heads of queries that share it."""
        op, sizes = self.op, self.shape
        times = sizes.heads // sizes.key_heads
        wide = op.Concat(*[op.Unsqueeze(x, self.constant([2], np.int64))] * times, axis=2)
        return op.Reshape(wide, self.constant([0, sizes.heads, -1, sizes.head_size], np.int64))

    def _attention(self, x: ir.Value, name: str) -> ir.Value:
        op, sizes = self.op, self.shape
        query = self._rotated(self._heads(self._linear(x, f"{name}.q_proj", sizes.hidden), sizes.heads))
        narrow = sizes.key_heads * sizes.head_size
        key = self._rotated(self._heads(self._linear(x, f"{name}.k_proj", narrow), sizes.key_heads))
        value = self._heads(self._linear(x, f"{name}.v_proj", narrow), sizes.key_heads)
        scaled = op.Mul(query, self.constant(sizes.head_size**-0.5, np.float16))
        scores = op.Add(op.MatMul(scaled, op.Transpose(self._repeated(key), perm=[0, 1, 3, 2])), self._mask)
        mixed = op.Transpose(op.MatMul(op.Softmax(scores, axis=-1), self._repeated(value)), perm=[0, 2, 1, 3])
        return self._linear(op.Reshape(mixed, self.constant([0, 0, -1], np.int64)), f"{name}.o_proj", sizes.hidden)

    def _mlp(self, x: ir.Value, name: str) -> ir.Value:
        op, sizes = self.op, self.shape
        gate = self._linear(x, f"{name}.gate_proj", sizes.intermediate)
        up = self._linear(x, f"{name}.up_proj", sizes.intermediate)
        inner = op.Mul(op.Mul(gate, op.Sigmoid(gate)), up)
        return self._linear(inner, f"{name}.down_proj", sizes.hidden, sizes.intermediate)


def build(shape: Shape, path: Path) -> None:
    """Write the model to `path` and its weights to `path`.data."""
    data = path.with_name(path.name + ".data")
    with data.open("wb") as file:
        weights = Weights(file, data)
        graph = LlamaGraph(shape, weights)
        tokens = ir.val("input_ids", ir.DataType.INT64, ("batch", "sequence"))
        logits = graph.logits(tokens)
    logits.name, logits.type = "logits", ir.TensorType(ir.DataType.FLOAT16)
    logits.shape = ir.Shape(("batch", "sequence", shape.vocabulary))
    made = ir.Graph(
        [tokens], [logits], nodes=graph.op.nodes, initializers=weights.values,
        opset_imports={"": OPSET}, name="llama",
    )  # fmt: skip
    ir.save(ir.Model(made, ir_version=9), path)


def random_tokens(vocabulary: int, path: Path) -> None:
    """SAMPLES x LENGTH token ids for calibration, as often as words are (Zipf's law); a random model has no text."""
    ids = np.random.default_rng(1).zipf(ZIPF, (SAMPLES, LENGTH)) % vocabulary
    np.savez(path, input_ids=ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the folder to write to; 2.2 GB by default")
    parser.add_argument("--gib", type=float, help="as many layers as come to so many GiB of weights")
    for field in dataclasses.fields(Shape):
        kind = str if field.name == "norms" else int
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    options = vars(parser.parse_args())
    folder: Path = options.pop("output")
    gib: float | None = options.pop("gib")
    folder.mkdir(parents=True, exist_ok=True)
    shape = Shape(**options)
    if gib is not None:
        shape = shape.of_gib(gib)
    build(shape, folder / "large_llama.onnx")
    random_tokens(shape.vocabulary, folder / "tokens.npz")


if __name__ == "__main__":
    main()

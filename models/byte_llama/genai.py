"""Write the shipped model as an ONNX Runtime GenAI folder: the same weights around a cache of keys and values.

python models/byte_llama/genai.py -o byte_llama.genai

The graph is what onnxruntime-genai's model builder makes of a Llama: SimplifiedLayerNormalization and its Skip form,
GroupQueryAttention with rotary embeddings within it. Needs neither PyTorch nor onnxruntime-genai.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
LAYERS, HIDDEN, HEADS, HEAD_SIZE, VOCABULARY, CONTEXT, EPSILON = 4, 160, 5, 32, 256, 2048, 1e-6
NUL = 0  # the byte that ends a text: no source file holds it
CACHE = ("key", "value")


class _Graph:
    """A decoder under construction."""

    def __init__(self, source: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.widths: dict[
            str, int
        ] = {}  # channels of the activations, which no tool can infer behind GroupQueryAttention
        named = {tensor.name: tensor for tensor in source.graph.initializer}
        self._norms = {name: numpy_helper.to_array(tensor) for name, tensor in named.items() if "norm" in name}
        self.embedding = numpy_helper.to_array(named["model.embed_tokens.weight"])
        self.frequencies = numpy_helper.to_array(named["model.rotary_emb.inv_freq"])
        reads = (node.input[1] for node in source.graph.node if node.op_type == "MatMul")
        self._layers = iter([numpy_helper.to_array(named[name]) for name in reads if name in named])

    def weight(self, name: str, array: np.ndarray) -> str:
        """Keep a weight; returns its name."""
        self.weights[name] = array
        return name

    def node(self, op_type: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: object) -> str:
        """Add a node; returns its first output."""
        self.nodes.append(helper.make_node(op_type, inputs, outputs, outputs[0], domain=domain, **attributes))
        return outputs[0]

    def linear(self, x: str, name: str) -> str:
        """The next linear layer of the source."""
        weight = next(self._layers)
        self.widths[name] = weight.shape[1]
        return self.node("MatMul", [x, self.weight(f"{name}.weight", weight)], [name])

    def norm(self, x: str, skip: str | None, name: str) -> tuple[str, str]:
        """(the norm of x + skip, that sum)."""
        weight = self.weight(f"{name}.weight", self._norms[f"{name}.weight"])
        self.widths |= {name: HIDDEN} | ({f"{name}.sum": HIDDEN} if skip is not None else {})
        if skip is None:
            attributes = {"epsilon": EPSILON, "axis": -1, "stash_type": 1}
            return self.node("SimplifiedLayerNormalization", [x, weight], [name], **attributes), x
        outputs = [name, "", "", f"{name}.sum"]
        inputs = [x, skip, weight]
        self.node("SkipSimplifiedLayerNormalization", inputs, outputs, "com.microsoft", epsilon=EPSILON)
        return name, outputs[3]


def decoder(source: onnx.ModelProto) -> onnx.ModelProto:
    """(input_ids, attention_mask, past keys and values) -> (logits, present keys and values), float32."""
    graph = _Graph(source)
    angles = np.outer(np.arange(CONTEXT), graph.frequencies)
    rotary = [graph.weight("cos_cache", np.cos(angles, dtype=np.float32))]
    rotary.append(graph.weight("sin_cache", np.sin(angles, dtype=np.float32)))
    lengths = _lengths(graph)
    residual = graph.node(
        "Gather", [graph.weight("model.embed_tokens.weight", graph.embedding), "input_ids"], ["embedded"]
    )
    skip = None
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        y, residual = graph.norm(residual, skip, f"{layer}.input_layernorm")
        heads = [graph.linear(y, f"{layer}.attn.{part}_proj") for part in "qkv"]
        mixed = _attention(graph, index, heads, [*lengths, *rotary])
        skip = graph.linear(mixed, f"{layer}.attn.o_proj")
        y, residual = graph.norm(residual, skip, f"{layer}.post_attention_layernorm")
        gate, up = graph.linear(y, f"{layer}.mlp.gate_proj"), graph.linear(y, f"{layer}.mlp.up_proj")
        open_gate = graph.node("Sigmoid", [gate], [f"{layer}.mlp.sigmoid"])
        swish = graph.node("Mul", [gate, open_gate], [f"{layer}.mlp.swish"])
        skip = graph.linear(graph.node("Mul", [swish, up], [f"{layer}.mlp.product"]), f"{layer}.mlp.down_proj")
    y, _ = graph.norm(residual, skip, "model.norm")
    graph.node("Identity", [graph.linear(y, "lm_head")], ["logits"])
    return _model(graph)


def _lengths(graph: _Graph) -> list[str]:
    """What GroupQueryAttention knows of the mask: tokens of each row less one, and of the longest row."""
    one = graph.weight("one", np.array([1], np.int64))
    shown = graph.node("ReduceSum", ["attention_mask", one], ["shown"], keepdims=0)
    last = graph.node("Sub", [shown, one], ["last"])
    seqlens = graph.node("Cast", [last], ["seqlens_k"], to=TensorProto.INT32)
    shape = graph.node("Shape", ["attention_mask"], ["mask_shape"])
    total = graph.node("Gather", [shape, graph.weight("second", np.array(1, np.int64))], ["total"], axis=0)
    return [seqlens, graph.node("Cast", [total], ["total_sequence_length"], to=TensorProto.INT32)]


def _attention(graph: _Graph, index: int, heads: list[str], rest: list[str]) -> str:
    inputs = [*heads, *(f"past_key_values.{index}.{part}" for part in CACHE), *rest]
    outputs = [f"model.layers.{index}.attn", *(f"present.{index}.{part}" for part in CACHE)]
    graph.widths[outputs[0]] = HIDDEN
    attributes = {"num_heads": HEADS, "kv_num_heads": HEADS, "do_rotary": 1, "rotary_interleaved": 0}
    return graph.node("GroupQueryAttention", inputs, outputs, "com.microsoft", **attributes)


def _model(graph: _Graph) -> onnx.ModelProto:
    ids, real = TensorProto.INT64, TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("input_ids", ids, ["batch_size", "sequence_length"]),
        helper.make_tensor_value_info("attention_mask", ids, ["batch_size", "total_sequence_length"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", real, ["batch_size", "sequence_length", VOCABULARY])]
    for index in range(LAYERS):
        for part in CACHE:
            for stem, length, values in (("past_key_values", "past", inputs), ("present", "total", outputs)):
                shape = ["batch_size", HEADS, f"{length}_sequence_length", HEAD_SIZE]
                values.append(helper.make_tensor_value_info(f"{stem}.{index}.{part}", real, shape))
    activations = [
        helper.make_tensor_value_info(name, real, ["batch_size", "sequence_length", width])
        for name, width in graph.widths.items()
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in graph.weights.items()]
    return helper.make_model(
        helper.make_graph(graph.nodes, "byte_llama", inputs, outputs, weights, value_info=activations),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )


def genai_config() -> dict:
    """genai_config.json: where onnxruntime-genai finds what, and how it searches."""
    past = {f"past_{part}_names": f"past_key_values.%d.{part}" for part in CACHE}
    present = {f"present_{part}_names": f"present.%d.{part}" for part in CACHE}
    return {
        "model": {
            "bos_token_id": NUL,
            "context_length": CONTEXT,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": HEAD_SIZE,
                "hidden_size": HIDDEN,
                "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **past},
                "outputs": {"logits": "logits", **present},
                "num_attention_heads": HEADS,
                "num_hidden_layers": LAYERS,
                "num_key_value_heads": HEADS,
            },
            "eos_token_id": NUL,
            "pad_token_id": NUL,
            "type": "llama",
            "vocab_size": VOCABULARY,
        },
        "search": {"do_sample": False, "max_length": CONTEXT, "past_present_share_buffer": True},
    }


def write(folder: Path) -> None:
    """The folder that `onnxruntime_genai.Model` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(decoder(onnx.load(HERE / "byte_llama.onnx")), folder / "model.onnx")
    (folder / "genai_config.json").write_text(json.dumps(genai_config(), indent=2))
    shutil.copy(HERE / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    write(parser.parse_args().output)


if __name__ == "__main__":
    main()

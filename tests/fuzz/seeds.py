"""What is damaged: models of every spelling of a norm, in bodies, quantised and beside attention; the shipped one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from tests.builders import holders, layer_forms, one_node_forms, rms_forms
from tests.builders.graph import CONTRIB, Graph
from tests.shipped import MODEL

WIDTH, HEADS, OPSET = 16, 2, 18


def seeds() -> list[onnx.ModelProto]:
    """The shipped model first, for it is large beside the others."""
    return [onnx.load(MODEL), *_forms(), *_in_bodies(), *_attentions(), *_quantised()]


def _forms() -> Iterator[onnx.ModelProto]:
    for form in (*rms_forms.FORMS, *layer_forms.FORMS, *one_node_forms.FORMS):
        if "float32" in form.dtypes and not form.reference_only:
            yield form.build("float32", max(form.opsets("float32"))).model


def _in_bodies() -> Iterator[onnx.ModelProto]:
    for hold in (holders.in_if, holders.in_loop, holders.in_scan, holders.norm_read_in_if):
        yield hold(OPSET).model()


def _block(attention: str | None = None) -> onnx.ModelProto:
    """A norm, an attention if one is named, a layer, a residual."""
    graph = Graph("float32", OPSET, seed=attention or "block")
    x = graph.normal_input("x", (2, 3, WIDTH), (2, 3, WIDTH))
    y = graph.op("LayerNormalization", x, graph.weight(WIDTH), graph.bias(WIDTH), axis=-1, epsilon=1e-5)
    if attention == "Attention":
        packed = (graph.initializer(graph.rng.normal(size=(WIDTH, 3 * WIDTH))), graph.bias(3 * WIDTH, name="packed"))
        y = graph.op(attention, y, *packed, domain=CONTRIB, num_heads=HEADS)
    elif attention == "MultiHeadAttention":
        y = graph.op(attention, *(_layer(graph, y) for _ in range(3)), domain=CONTRIB, num_heads=HEADS)
    elif attention == "GroupQueryAttention":
        heads = {"num_heads": HEADS, "kv_num_heads": HEADS}
        lengths = (graph.initializer([2, 2], dtype="int32"), graph.initializer(3, dtype="int32"))
        operands = (*(_layer(graph, y) for _ in range(3)), "", "", *lengths)
        y = graph.op(attention, *operands, domain=CONTRIB, outputs=3, **heads)[0]
    graph.output(graph.op("Add", x, _layer(graph, y)), "out")
    return graph.model()


def _layer(graph: Graph, x: str) -> str:
    return graph.op("MatMul", x, graph.initializer(graph.rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)))


def _attentions() -> Iterator[onnx.ModelProto]:
    for attention in ("Attention", "MultiHeadAttention", "GroupQueryAttention"):
        yield _block(attention)


def _quantised() -> Iterator[onnx.ModelProto]:
    for bits in (4, 8):
        quantizer = MatMulNBitsQuantizer(_block(), bits=bits, block_size=16)
        quantizer.process()
        yield quantizer.model.model
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(_block(), f"{folder}/float.onnx")
        for per_channel in (False, True):
            path = Path(folder, "quantised.onnx")
            quantize_dynamic(f"{folder}/float.onnx", path, per_channel=per_channel, weight_type=QuantType.QInt8)
            yield onnx.load(path)

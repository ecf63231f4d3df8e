"""Runs a model: in ONNX Runtime, or, in bfloat16, in onnx's reference evaluator.

ONNX Runtime has no CPU kernels for arithmetic in bfloat16. The reference evaluator has, and is
given here what it lacks: ONNX Runtime's own norms, computed in float32 like the real ones.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from dynorm_onnx.runtime.session import runnable
from tests.builders.reference import grouped_attention, normalise, silu

ort.set_default_logger_severity(4)


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    # what is written in the file is tested here, not what ONNX Runtime makes of it
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return options


def run_ort(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), _options(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def run_model(model: onnx.ModelProto | ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs of a small model, as what proves a norm runs it."""
    return runnable(model)(feeds)


def run_reference(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ReferenceEvaluator(model, new_ops=OPERATORS).run(None, feeds)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], *, reference: bool = False) -> list[np.ndarray]:
    """All outputs of the model; in ONNX Runtime unless the type, or the caller, rules that out."""
    if reference or uses_bfloat16(model):
        return run_reference(model, feeds)
    return run_ort(model, feeds)


class Known:
    """run(), which remembers what models gave: a form is the same at many opsets, operator by operator."""

    def __init__(self) -> None:
        self._outputs: dict[tuple[object, ...], list[np.ndarray]] = {}

    def run(self, model: onnx.ModelProto, feeds: dict[str, np.ndarray], *, reference: bool = False) -> list[np.ndarray]:
        """What run() gives or gave."""
        fed = tuple((name, array.dtype, array.shape, array.tobytes()) for name, array in feeds.items())
        key = (*operators_of(model), fed, reference)
        if key not in self._outputs:
            self._outputs[key] = run(model, feeds, reference=reference)
        return self._outputs[key]


def operators_of(model: onnx.ModelProto) -> tuple[object, ...]:
    """What two models have in common that differ in no more than opsets between which no operator of theirs changed."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    versions = []
    for holder in (plain, *plain.functions):
        nodes = holder.graph.node if isinstance(holder, onnx.ModelProto) else holder.node
        imports = {entry.domain: entry.version for entry in holder.opset_import}
        versions.append(tuple(_since(node.op_type, node.domain, imports.get(node.domain, 1)) for node in nested(nodes)))
        for entry in holder.opset_import:
            entry.version = 0
    return (*versions, plain.SerializeToString(deterministic=True))


def nested(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, and those of their bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from nested(graph.node)


@functools.cache
def _since(operator: str, domain: str, version: int) -> int:
    """The version of an operator: that of its domain where onnx does not know it there."""
    try:
        return onnx.defs.get_schema(operator, version, domain).since_version
    except onnx.defs.SchemaError:
        return version


def uses_bfloat16(model: onnx.ModelProto) -> bool:
    typed = [*model.graph.input, *model.graph.output]
    return any(v.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16 for v in typed) or any(
        t.data_type == onnx.TensorProto.BFLOAT16 for t in model.graph.initializer
    )


def _norm(kind: str, x: np.ndarray, scale: Any, bias: Any, axis: int, eps: float, dtype: Any) -> np.ndarray:
    first = axis % x.ndim
    y = normalise(kind, x.astype(np.float64), tuple(range(first, x.ndim)), eps)
    y = y if scale is None else y * scale.astype(np.float64)
    y = y if bias is None else y + bias.astype(np.float64)
    return y.astype(dtype)


class MatMul(OpRun):
    """onnx's own, below 1.23, gives float32 for bfloat16."""

    op_domain = ""

    def _run(self, a, b):
        return (np.matmul(a, b).astype(a.dtype),)


class Sigmoid(OpRun):
    """onnx's own, in 1.19, fails for bfloat16 with newer versions of numpy."""

    op_domain = ""

    def _run(self, x):
        return ((1 / (1 + np.exp(-x.astype(np.float64)))).astype(x.dtype),)


class SimplifiedLayerNormalization(OpRun):
    op_domain = ""

    def _run(self, x, scale, axis=-1, epsilon=1e-5, stash_type=1):
        y = _norm("rms", x, scale, None, axis, epsilon, scale.dtype)
        return (y,) if len(self.output) == 1 else (y, np.zeros(1, np.float32))


# the evaluator goes by the name of the class
_ContribNorm = type("SimplifiedLayerNormalization", (SimplifiedLayerNormalization,), {"op_domain": "com.microsoft"})


class RMSNormalization(OpRun):
    op_domain = ""

    def _run(self, x, scale, axis=-1, epsilon=1e-5, stash_type=1):
        return (_norm("rms", x, scale, None, axis, epsilon, scale.dtype),)


class LayerNormalization(OpRun):
    op_domain = ""

    def _run(self, x, scale, bias=None, axis=-1, epsilon=1e-5, stash_type=1):
        y = _norm("layer", x, scale, bias, axis, epsilon, scale.dtype)
        return (y, *(np.zeros(1, np.float32) for _ in self.output[1:]))


class SkipLayerNormalization(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, skip, gamma, beta=None, bias=None, epsilon=1e-12):
        return self._outputs("layer", x, skip, gamma, beta, bias, epsilon)

    def _outputs(self, kind, x, skip, gamma, beta, bias, epsilon):
        total = x.astype(np.float32) + skip.astype(np.float32)
        total = total if bias is None else total + bias.astype(np.float32)
        total = total.astype(x.dtype)
        y = _norm(kind, total, gamma, beta, -1, epsilon, x.dtype)
        return (y, np.zeros(1, np.float32), np.zeros(1, np.float32), total)[: len(self.output)]


class SkipSimplifiedLayerNormalization(SkipLayerNormalization):
    op_domain = "com.microsoft"

    def _run(self, x, skip, gamma, bias=None, epsilon=1e-12):
        return self._outputs("rms", x, skip, gamma, None, bias, epsilon)


class EmbedLayerNormalization(OpRun):
    op_domain = "com.microsoft"

    def _run(
        self, ids, segments, words, positions, kinds, gamma, beta, mask=None, position_ids=None,
        epsilon=1e-12, mask_index_type=0,
    ):  # fmt: skip
        position_ids = np.arange(ids.shape[1])[None] if position_ids is None else position_ids
        total = words[ids].astype(np.float32) + positions[position_ids].astype(np.float32)
        if segments is not None:
            total = total + kinds[segments].astype(np.float32)
        y = _norm("layer", total, gamma, beta, -1, epsilon, words.dtype)
        lengths = np.zeros(ids.shape[0], np.int32) if mask is None else mask.sum(1, dtype=np.int32)
        return (y, lengths, total.astype(words.dtype))[: len(self.output)]


class GatedRMSNorm(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, scale, gate, activation="silu", epsilon=1e-5):
        groups = x.reshape(*x.shape[:-1], -1, scale.shape[0])
        y = _norm("rms", groups, scale, None, -1, epsilon, np.float64).reshape(x.shape)
        gate = gate.astype(np.float64)
        return ((y * (silu(gate) if activation != "sigmoid" else silu(gate) / gate)).astype(x.dtype),)


class GroupQueryAttention(OpRun):
    """Causal, without a past: ONNX Runtime has the norms of q and k on CUDA only."""

    op_domain = "com.microsoft"

    def _run(self, q, k, v, *rest, **attrs):
        cos, sin, *_ = rest = (*rest, *[None] * 13)[4:]
        heads, kv_heads = self.num_heads, self.kv_num_heads
        size = q.shape[-1] // heads
        eps = attrs.get("qk_norm_epsilon") or 1e-6

        def prepared(x, scale, epsilon):
            groups = x.astype(np.float64).reshape(*x.shape[:-1], -1, size)
            if scale is not None:
                groups = _norm("rms", groups, scale, None, -1, epsilon, np.float64)
            if attrs.get("do_rotary"):
                groups = _rotate(groups, cos.astype(np.float64), sin.astype(np.float64))
            return groups.reshape(x.shape)

        q64 = prepared(q, rest[7], attrs.get("q_norm_epsilon") or eps)
        k64 = prepared(k, rest[8], attrs.get("k_norm_epsilon") or eps)
        y = grouped_attention(q64, k64, v.astype(np.float64), heads, kv_heads).astype(q.dtype)
        cache = [t.reshape(*t.shape[:2], -1, size).swapaxes(1, 2).astype(q.dtype) for t in (k64, v)]
        return (y, *cache)[: len(self.output)]


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    length, half = x.shape[1], x.shape[-1] // 2
    cos, sin = cos[:length, None], sin[:length, None]
    left, right = x[..., :half], x[..., half:]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


OPERATORS = [
    MatMul,
    Sigmoid,
    SimplifiedLayerNormalization,
    _ContribNorm,
    RMSNormalization,
    LayerNormalization,
    SkipLayerNormalization,
    SkipSimplifiedLayerNormalization,
    EmbedLayerNormalization,
    GatedRMSNorm,
    GroupQueryAttention,
]

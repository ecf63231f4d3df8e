"""A model fused for ONNX Runtime by onnxscript: attention, rotary embeddings, Skip norms."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from dynorm_onnx.errors import ModelError
from dynorm_onnx.graph.linear.joined_weights import join_weights
from dynorm_onnx.graph.quiet import without_tracebacks
from dynorm_onnx.graph.replace.flat_rows import flatten_rows
from dynorm_onnx.graph.values.outputs import largest_difference
from dynorm_onnx.runtime.arrays import Feeds, first_line, is_float, run
from dynorm_onnx.runtime.measures import OutputSums
from dynorm_onnx.runtime.session import Model

log = logging.getLogger(__name__)

_SAME = {"float64": 1e-6, "float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
"""The relative error up to which a fused model computes the same: orders of summation differ, deep in."""

_MICROSOFT = "com.microsoft"
_OF_ATTENTION = frozenset({"Attention", "GroupQueryAttention", "MultiHeadAttention", "RotaryEmbedding"})
"""What ONNX Runtime does not fuse by itself, or only around norms; the rest it makes of any file when it loads it."""


def fuse_for_ort(model: Model) -> ir.Model:
    """What onnxscript's `optimize_for_ort` makes of a copy of the model; weights are shared, `model` is not changed.

    The result has operators of the domain com.microsoft, which only ONNX Runtime runs. Raises ModelError where the
    rewriter fails. Whether it kept the outputs, same_outputs() tells.
    """
    from onnxscript.rewriter.ort_fusions import optimize_for_ort  # takes a second to import

    copy = _private_copy(model)
    names = {value.name: node.name for node in copy.graph for value in node.outputs}
    try:
        with without_tracebacks():
            fused, counts = optimize_for_ort(copy)
    except Exception as error:  # whatever the rewriter trips over
        raise ModelError(f"onnxscript cannot fuse the model for ONNX Runtime: {first_line(error)}") from error
    log.info("onnxscript fused: %s", {name: n for name, n in counts.items() if n})
    _name_as_before(fused, names)
    flatten_rows(fused.graph)  # behind attention, before Gemm
    join_weights(fused.graph)  # of queries, keys and values, which Attention reads in one
    return fused


def fused_or_not(model: ir.Model, optimize: str) -> ir.Model:
    """The model fused, where `optimize` is "ort", or "auto" and that brings attention; else as it is. Raises ModelError
    where the rewriter fails."""
    if optimize == "none" or (optimize == "auto" and not _may_gain_attention(model)):
        return model
    fused = fuse_for_ort(model)
    if optimize == "ort" or _gains_attention(model, fused):
        return fused
    log.info("not fused for ONNX Runtime: that would bring no attention")
    return model


def same_outputs(plain: Any, fused: Any, feeds: Feeds) -> bool:
    """Whether two sessions agree on feeds: float outputs within their type's tolerance, the others exactly."""
    excess = _largest_excess(run(plain, feeds), run(fused, feeds))
    log.info("the fused model's outputs differ by %.3g times what is allowed", excess)
    return excess <= 1


def _gains_attention(model: ir.Model, fused: ir.Model) -> bool:
    """Whether the fused model has operators of attention that the model has not."""
    before, after = (
        sum(node.domain == _MICROSOFT and node.op_type in _OF_ATTENTION for node in one.graph.all_nodes())
        for one in (model, fused)
    )
    return after > before


def _may_gain_attention(model: ir.Model) -> bool:
    """Whether there is anything that could be fused to attention: fusing takes a minute for thirty layers."""
    parts = [model.graph, *(function.graph for function in model.functions.values())]
    return any(
        node.op_type in ("Softmax", "Attention") and not node.domain for part in parts for node in part.all_nodes()
    )


def _name_as_before(fused: ir.Model, names: Mapping[str | None, str | None]) -> None:
    """Gives new nodes the names of those that computed the same before: norms are called by them, in `--keep` and in
    reports."""
    known = {node.name for node in fused.graph} & set(names.values())
    for node in fused.graph:
        before = names.get(node.outputs[0].name)
        if node.name not in known and before and before not in known:
            node.name = before
            known.add(before)


def _private_copy(model: Model) -> ir.Model:
    """A model that may be changed; weights are shared."""
    if isinstance(model, ir.Model):
        return model.clone()
    if isinstance(model, bytes):
        return ir.from_proto(onnx.ModelProto.FromString(model))
    return ir.from_proto(model) if isinstance(model, onnx.ModelProto) else ir.load(model)


def _largest_excess(expected: Feeds, got: Feeds) -> float:
    """The largest relative error of a float output in units of what its type allows."""
    if set(expected) != set(got):
        return math.inf
    return max((largest_difference(array, got[name], _excess) for name, array in expected.items()), default=0.0)


def _excess(expected: np.ndarray, got: np.ndarray) -> float:
    """The same of one output's array. Others than floats must be equal."""
    if not is_float(expected):
        return 0.0 if np.array_equal(expected, got) else math.inf
    if not expected.size:
        return 0.0
    return OutputSums.of(expected, got, None).error().relative_error / _SAME[expected.dtype.name]

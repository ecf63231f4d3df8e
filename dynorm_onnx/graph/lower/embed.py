"""Lowering of EmbedLayerNormalization: the sum of embeddings in standard operators, then the norm."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.edit.emit import Emitter, remove_dead
from dynorm_onnx.graph.lower.canonical import Lowering
from dynorm_onnx.graph.lower.lowered_norm import LoweredNorm
from dynorm_onnx.graph.norm_site import NormSite

# Inputs and outputs as ONNX Runtime's contrib operator numbers them.
_IDS, _SEGMENT_IDS, _WORDS, _POSITIONS, _SEGMENTS, _MASK, _POSITION_IDS = 0, 1, 2, 3, 4, 7, 8
_MASK_INDEX, _SUM = 1, 2


def lower_embedding(lowering: Lowering, site: NormSite) -> LoweredNorm:
    """word[ids] + position[0..S or position_ids] (+ segment[segment_ids]); mask index where it is used."""
    (node,) = site.nodes
    emit = lowering.emitter(site, node)
    y = node.outputs[0]
    total = _embedding_sum(emit, node, site.dtype)
    if total.shape is None:
        total.shape = y.shape
    lowered, replacement = lowering.norm(site, emit, total, lowering.current(site.weight), lowering.current(site.bias))
    lowering.take_over(y, replacement)
    if _is_used(node, _SUM):
        lowering.take_over(node.outputs[_SUM], total)
    if _is_used(node, _MASK_INDEX):
        lowering.take_over(node.outputs[_MASK_INDEX], _mask_index(emit, node, lowering.opset))
    remove_dead([node])
    return lowered


def _embedding_sum(emit: Emitter, node: ir.Node, dtype: ir.DataType) -> ir.Value:
    ids, table = node.inputs[_IDS], node.inputs[_POSITIONS]
    total = emit.op("Gather", [node.inputs[_WORDS], ids], output="words", dtype=dtype)
    position_ids = _input(node, _POSITION_IDS)
    if position_ids is not None:
        positions = emit.op("Gather", [table, position_ids], output="positions", dtype=dtype)
    else:
        shape = emit.op("Shape", [ids], output="ids_shape", dtype=ir.DataType.INT64)
        bounds = [emit.integers([number], name) for number, name in ((0, "zero"), (1, "one"), (2, "two"))]
        length = emit.op("Slice", [shape, bounds[1], bounds[2]], output="length", dtype=ir.DataType.INT64)
        positions = emit.op("Slice", [table, bounds[0], length], output="positions", dtype=dtype)
    total = emit.add(total, positions, dtype, output="words_and_positions")
    segment_ids, segments = _input(node, _SEGMENT_IDS), _input(node, _SEGMENTS)
    if segment_ids is not None and segments is not None:
        segment = emit.op("Gather", [segments, segment_ids], output="segments", dtype=dtype)
        total = emit.add(total, segment, dtype, output="sum")
    return total


def _mask_index(emit: Emitter, node: ir.Node, opset: int) -> ir.Value:
    """int32 [B]: how many ones each row of the mask holds; zeros without a mask."""
    mask = _input(node, _MASK)
    if mask is None:
        shape = emit.op("Shape", [node.inputs[_IDS]], output="mask_shape", dtype=ir.DataType.INT64)
        bounds = [emit.integers([number], f"batch_{number}") for number in (0, 1)]
        batch = emit.op("Slice", [shape, *bounds], output="batch", dtype=ir.DataType.INT64)
        zero = ir.tensor(np.zeros(1, np.int32))
        return emit.op("ConstantOfShape", [batch], {"value": zero}, output="mask_index", dtype=ir.DataType.INT32)
    one = emit.initializer(np.ones([], np.int32), "mask_one")
    equal = emit.op("Equal", [mask, one], output="mask_equal", dtype=ir.DataType.BOOL)
    ones = emit.cast(equal, ir.DataType.INT32, "mask_ones")
    if opset < 13:  # where the axes became an input
        return emit.op("ReduceSum", [ones], {"keepdims": 0, "axes": [1]}, output="mask_index", dtype=ir.DataType.INT32)
    inputs = [ones, emit.integers([1], "mask_axis")]
    return emit.op("ReduceSum", inputs, {"keepdims": 0}, output="mask_index", dtype=ir.DataType.INT32)


def _input(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if len(node.inputs) > position else None


def _is_used(node: ir.Node, position: int) -> bool:
    if len(node.outputs) <= position:
        return False
    value = node.outputs[position]
    return bool(value.uses()) or value.is_graph_output()

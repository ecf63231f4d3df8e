"""Form C6: Keras 2 spells LayerNorm as a BatchNormalization in training mode between two Reshapes."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.forms.algebra import ONE, Polynomial, Sum, product
from dynorm_onnx.graph.forms.constants import integer, real
from dynorm_onnx.graph.forms.decomposed import Finding, readings_of, site_of
from dynorm_onnx.graph.forms.index import GraphIndex, is_op
from dynorm_onnx.graph.forms.inverse_root import SQUARE, SQUARED_MEAN
from dynorm_onnx.graph.forms.layout import restores
from dynorm_onnx.graph.forms.operators import Frame
from dynorm_onnx.graph.forms.region import walk
from dynorm_onnx.graph.norm_site import NearMiss

TRAINING_MODE_SINCE = 14  # before, the number of outputs said it


def find(index: GraphIndex) -> list[Finding]:
    """The LayerNorms among the BatchNormalizations that take their statistics from their input."""
    nodes = [node for node in index.nodes if is_op(node, "BatchNormalization") and _trains(index, node)]
    return [finding for node in nodes if (finding := _judge(index, node)) is not None]


def _trains(index: GraphIndex, node: ir.Node) -> bool:
    if (index.opset() or TRAINING_MODE_SINCE) >= TRAINING_MODE_SINCE:
        return integer(node, "training_mode", 0) == 1
    return len(node.outputs) > 1


def _judge(index: GraphIndex, node: ir.Node) -> Finding | None:
    """Before: Reshape to [1, tokens, C, 1], BatchNormalization, Reshape back. After: x̂ of LayerNorm.

    When: the Reshapes undo each other, scale is 1 and offset is 0. That each token is one channel of
    the BatchNormalization is left to the proof, since Keras computes the shape.
    """
    name = node.name or node.outputs[0].name or node.op_type
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    readers = index.consumers(node.outputs[0])
    if not is_op(before, "Reshape") or before is None or before.inputs[0] is None:
        return None
    if len(readers) != 1 or not is_op(readers[0], "Reshape") or readers[0] not in index:
        return None
    source, result = before.inputs[0], readers[0].outputs[0]
    if not restores(index, readers[0], source):
        return NearMiss(name, "looks like a LayerNorm by BatchNormalization, but its Reshapes differ")
    if _uniform(index, node.inputs[1]) != 1 or _uniform(index, node.inputs[2]) != 0:
        return NearMiss(name, "looks like a LayerNorm by BatchNormalization, but its scale is not 1")
    shape = index.shape(source)
    x = index.peel(source)
    normalised = _normalised(real(node, "epsilon", 1e-5))
    given = {source: Polynomial.symbol("x"), before.outputs[0]: Polynomial.symbol("x")}
    given |= {node.outputs[0]: normalised, result: normalised}
    region = walk(Frame(index, x, (-1,), shape[-1] if shape else None), given)
    found = site_of(region, readings_of(region), result)
    return found if isinstance(found, NearMiss) else dataclasses.replace(found, form="C6")


def _normalised(epsilon: float) -> Polynomial:
    """(x - mean) / sqrt(variance + epsilon)."""
    root = Sum(Polynomial({SQUARE: 1.0, SQUARED_MEAN: -1.0, ONE: epsilon}))
    power = Fraction(-1, 2)
    return Polynomial({product(("x", 1), (root, power)): 1.0, product(("mean", 1), (root, power)): -1.0})


def _uniform(index: GraphIndex, value: ir.Value | None) -> float | None:
    """The number that all elements are, also of a large tensor: one scale for every token."""
    number = index.scalar(value)
    if number is not None or value is None or value.const_value is None:
        return number
    try:
        data = np.unique(value.const_value.numpy())
    except OSError:  # the weights are not there
        return None
    return float(data[0]) if data.size == 1 else None

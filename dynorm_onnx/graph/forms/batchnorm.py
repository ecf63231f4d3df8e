"""Form C6: Keras 2 spells LayerNorm as a BatchNormalization between two Reshapes: in training mode, or, in files for
inference, with mean and variance computed beside it."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from dynorm_onnx.graph.forms.algebra import ONE, Polynomial, Sum, product
from dynorm_onnx.graph.forms.decomposed import Finding, readings_of, site_of
from dynorm_onnx.graph.forms.inverse_root import SQUARE, SQUARED_MEAN
from dynorm_onnx.graph.forms.layout import restores
from dynorm_onnx.graph.forms.operators import Frame
from dynorm_onnx.graph.forms.region import walk
from dynorm_onnx.graph.norm_site import NearMiss
from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import is_op
from dynorm_onnx.graph.values.small_constants import integer, real

TRAINING_MODE_SINCE = 14  # before, the number of outputs said it
INPUTS = 5  # X, scale, offset, mean, variance
X, MEAN = Polynomial.symbol("x"), Polynomial.symbol("mean")
VARIANCE = Polynomial({SQUARE: 1.0, SQUARED_MEAN: -1.0})
Given = dict[ir.Value, Polynomial]


def find(index: GraphIndex) -> list[Finding]:
    """The LayerNorms among the BatchNormalizations that take their statistics from their input."""
    findings = []
    for node in index.nodes:
        if not is_op(node, "BatchNormalization"):
            continue
        statistics = _own_statistics(index, node)
        finding = None if statistics is None else _judge(index, node, statistics)
        if finding is not None:
            findings.append(finding)
    return findings


def _own_statistics(index: GraphIndex, node: ir.Node) -> Given | None:
    """The values that lead from the input to its own statistics, none in training mode; None where the mean and the
    variance are no such statistics.

    Over all axes but the second: they are moments of one channel, which the LayerNorm's token is.
    """
    if _trains(index, node):
        return {}
    rows, _, _, mean, variance = node.inputs
    rank = index.rank(rows)
    if rows is None or mean is None or variance is None or rank is None or rank < 3:
        return None
    axes = (-rank, *range(2 - rank, 0))
    sizes = index.shape(rows) or ()
    count = math.prod(sizes[axis] or 0 for axis in axes) or None
    forms = walk(Frame(index, index.peel(rows), axes, count)).forms
    return forms if forms.get(mean) == MEAN and forms.get(variance) == VARIANCE else None


def _trains(index: GraphIndex, node: ir.Node) -> bool:
    if (index.opset() or TRAINING_MODE_SINCE) >= TRAINING_MODE_SINCE:
        return integer(node, "training_mode", 0) == 1
    return len(node.outputs) > 1


def _judge(index: GraphIndex, node: ir.Node, statistics: Given) -> Finding | None:
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
    given = {**statistics, source: X, before.outputs[0]: X, node.outputs[0]: normalised, result: normalised}
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

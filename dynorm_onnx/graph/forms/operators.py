"""What each operator does to the normal form of its operands: the spellings become one formula.

A new spelling of a step (say, another way to write a square) is one entry in `OPERATORS`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction

import onnx_ir as ir

from dynorm_onnx.graph.forms.algebra import Polynomial
from dynorm_onnx.graph.values import small_constants as constants
from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import QUANTISERS

HALF = Fraction(1, 2)
# Below this a lower bound on a variance or a length only guards against zero, and is no formula.
GUARD = 1e-5


@dataclasses.dataclass(frozen=True)
class Frame:
    """Whose moments are meant: those of `x` over `axes` (negative), `count` elements if known.

    `rank` is what x is taken to have where nothing says it.
    """

    index: GraphIndex
    x: ir.Value
    axes: tuple[int, ...]
    count: int | None
    rank: int | None = None

    def counted(self) -> Polynomial:
        """How many elements a mean is over: a number where that is known, else the symbol."""
        return Polynomial.symbol("count") if self.count is None else Polynomial.constant(self.count)


Operands = list[Polynomial]
Operator = Callable[[Frame, ir.Node, Operands], Polynomial | None]


def reduced_axes(index: GraphIndex, node: ir.Node, assumed: int | None = None) -> tuple[int, ...] | None:
    """The axes of a reduction, negative and ascending, from attribute or input; `assumed` is the rank where none is
    known.

    () where they are absent (all axes); None where they are computed, positive with rank unknown, or
    beyond the rank.
    """
    axes = written_axes(index, node)
    rank = index.rank(node.inputs[0])
    rank = assumed if rank is None else rank
    if not axes:
        return axes
    if any(a >= 0 if rank is None else not -rank <= a < rank for a in axes):
        return None
    return tuple(sorted(a if a < 0 else a - (rank or 0) for a in axes))


def written_axes(index: GraphIndex, node: ir.Node) -> tuple[int, ...] | None:
    """The axes of a reduction as the file has them; () where they are absent, None where they are computed."""
    axes = constants.integers(node, "axes")
    if node.op_type == "LpNormalization":
        axes = (constants.integer(node, "axis", -1),)
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        data = index.constant(node.inputs[1])
        if data is None:
            return None
        axes = tuple(int(a) for a in data.flat)
    return axes or ()


def _same(frame: Frame, node: ir.Node, operands: Operands) -> Polynomial | None:
    return operands[0]


def _rounded(frame: Frame, node: ir.Node, operands: Operands) -> Polynomial | None:
    return operands[0] if frame.index.across_quantisation else None


def _reshaped(frame: Frame, node: ir.Node, operands: Operands) -> Polynomial | None:
    """A moment may be reshaped to broadcast again; x may not, its axes would be other axes."""
    return None if operands[0].has("x") or operands[0].parameters() else operands[0]


def _add(frame: Frame, node: ir.Node, operands: Operands) -> Polynomial | None:
    total = operands[0]
    for operand in operands[1:]:
        total = total.plus(operand)
    return total


def _subtract(frame: Frame, node: ir.Node, operands: Operands) -> Polynomial | None:
    return operands[0].plus(operands[1], -1.0)


def _multiply(frame: Frame, node: ir.Node, operands: Operands) -> Polynomial | None:
    return operands[0].times(operands[1])


def _divide(frame: Frame, node: ir.Node, operands: Operands) -> Polynomial | None:
    inverse = operands[1].power(Fraction(-1))
    return None if inverse is None else operands[0].times(inverse)


def _pow(frame: Frame, node: ir.Node, operands: Operands) -> Polynomial | None:
    exponent = frame.index.scalar(node.inputs[1])
    if exponent is None:
        return None
    return operands[0].power(Fraction(exponent).limit_denominator(64))


def _to(exponent: Fraction) -> Operator:
    def power(frame: Frame, node: ir.Node, operands: Operands) -> Polynomial | None:
        return operands[0].power(exponent)

    return power


def _guarded(frame: Frame, node: ir.Node, operands: Operands) -> Polynomial | None:
    """max(v, tiny) of what cannot be negative but by rounding is v itself."""
    if operands[0].has("x"):
        return None
    bounds = {"Clip": node.inputs[1:], "Max": node.inputs, "Relu": ()}[node.op_type]
    limits = [frame.index.scalar(b) for b in bounds if b is not None]
    known = [limit for limit in limits if limit is not None]
    if node.op_type == "Clip" and (len(node.inputs) < 2 or node.inputs[1] is None):
        known.append(constants.real(node, "min", -math.inf))
    if any(GUARD < limit < 1e30 for limit in known):
        return None
    varying = [p for p in operands if p.terms and not p.terms.keys() <= {frozenset()}]
    return varying[0] if len(varying) == 1 else None


def _reduction(before: Fraction, counted: bool, after: Fraction) -> Operator:
    """(the mean, or the sum, of operand ** before) ** after."""

    def reduce(frame: Frame, node: ir.Node, operands: Operands) -> Polynomial | None:
        if reduced_axes(frame.index, node, frame.rank) != frame.axes:
            return None
        powered = operands[0].power(before)
        mean = None if powered is None else powered.mean()
        if mean is None:
            return None
        return (mean.times(frame.counted()) if counted else mean).power(after)

    return reduce


def _normalize(frame: Frame, node: ir.Node, operands: Operands) -> Polynomial | None:
    """LpNormalization, p = 2: the operand over its length."""
    if constants.integer(node, "p", 2) != 2:
        return None
    length = OPERATORS["ReduceL2"](frame, node, operands)
    inverse = None if length is None else length.power(Fraction(-1))
    return None if inverse is None else operands[0].times(inverse)


OPERATORS: dict[str, Operator] = {
    "Identity": _same,
    "Cast": _same,
    **dict.fromkeys(QUANTISERS, _rounded),
    "CastLike": _same,
    "Reshape": _reshaped,
    "Unsqueeze": _reshaped,
    "Squeeze": _reshaped,
    "Expand": _reshaped,
    "Add": _add,
    "Sum": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Pow": _pow,
    "Neg": lambda frame, node, operands: Polynomial({}).plus(operands[0], -1.0),
    "Sqrt": _to(HALF),
    "Reciprocal": _to(Fraction(-1)),
    "Max": _guarded,
    "Clip": _guarded,
    "Relu": _guarded,
    "ReduceMean": _reduction(Fraction(1), False, Fraction(1)),
    "ReduceSum": _reduction(Fraction(1), True, Fraction(1)),
    "ReduceSumSquare": _reduction(Fraction(2), True, Fraction(1)),
    "ReduceL2": _reduction(Fraction(2), True, HALF),
    "LpNormalization": _normalize,
}
# Inputs that say how, not what: they are no operands of the formula.
OPERANDS: dict[str, slice] = {
    **{op: slice(0, 1) for op in ("Reshape", "Unsqueeze", "Squeeze", "Expand", "CastLike", "Clip", "Pow")},
    **{op: slice(0, 1) for op in QUANTISERS},
    **{op: slice(0, 1) for op in ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2")},
}

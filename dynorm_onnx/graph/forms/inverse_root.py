"""What stands under the inverse root, and how the root is spelled (forms B1 to B4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fractions import Fraction

import onnx_ir as ir

from dynorm_onnx.graph.forms.algebra import ONE, Monomial, Polynomial, Sum, product
from dynorm_onnx.graph.norm_site import Kind
from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import is_op

SQUARE = product(("square", 1))
SQUARED_MEAN = product(("mean", 2))
INVERSE_ROOT = Fraction(-1, 2)


@dataclasses.dataclass(frozen=True)
class Spread:
    """mean(x^2) + epsilon (kind rms) or variance(x) + epsilon (kind layer)."""

    kind: Kind
    epsilon: float


def spread(polynomial: Polynomial) -> Spread | None:
    """Reads q + eps as the mean square, q - m^2 + eps as the variance."""
    terms = dict(polynomial.terms)
    square, epsilon = terms.pop(SQUARE, None), terms.pop(ONE, 0.0)
    centred = terms.pop(SQUARED_MEAN, None)
    if terms or square is None or abs(square - 1) > 1e-6 or epsilon < 0:
        return None
    if centred is None:
        return Spread("rms", epsilon)
    return Spread("layer", epsilon) if abs(centred + 1) <= 1e-6 else None


def split_inverse_root(monomial: Monomial) -> tuple[Spread, Monomial] | None:
    """The inverse root of a product and the product's other factors; None if it has no such root."""
    for symbol, exponent in monomial:
        if exponent != INVERSE_ROOT:
            continue
        rest = monomial - {(symbol, exponent)}
        if symbol == "square":
            return Spread("rms", 0.0), rest
        if isinstance(symbol, Sum):
            found = spread(symbol.polynomial)
            return None if found is None else (found, rest)
    return None


def spelling(index: GraphIndex, nodes: Iterable[ir.Node]) -> str:
    """B1: a division by the root, B2: times 1 / root, B3: times Reciprocal, B4: Pow."""
    form = "B1"
    for node in nodes:
        if is_op(node, "Pow") and (index.scalar(node.inputs[1]) or 0) < 0:
            return "B4"
        if is_op(node, "Reciprocal"):
            form = "B3"
        if is_op(node, "Div") and index.scalar(node.inputs[0]) == 1:
            form = "B2"
    return form

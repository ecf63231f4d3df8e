"""RMSNorm in pieces, forms B1 to B15: reading the formula x / sqrt(mean(x^2) + eps) * weight + bias."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from dynorm_onnx.graph.forms.affine import Normalised
from dynorm_onnx.graph.forms.algebra import Monomial, Parameter, Polynomial
from dynorm_onnx.graph.forms.inverse_root import spelling, split_inverse_root
from dynorm_onnx.graph.forms.region import Region
from dynorm_onnx.graph.norm_site import NormSite
from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import is_op
from dynorm_onnx.graph.values.small_constants import integer

Slot = ir.Value | Literal[False] | None  # a parameter, none, or False: something that is no parameter


def read(form: Polynomial, tolerance: float) -> Normalised | None:
    """The RMSNorm that a value is.

    Before: x * r [* weight] [+ bias], r = (mean(x^2) + eps) ** -1/2, in any spelling.
    When: one product holds x, its coefficient is 1 within `tolerance` (that of the constants' type:
    sqrt(C), where it is there, cancels the root of the sum), at most one parameter on either place.
    """
    numerators = [m for m in form.terms if any(s == "x" for s, _ in m)]
    rest = {m: c for m, c in form.terms.items() if m not in numerators}
    if len(numerators) != 1 or len(rest) > 1 or abs(form.terms[numerators[0]] - 1) > tolerance:
        return None
    found = split_inverse_root(numerators[0])
    if found is None or found[0].kind != "rms":
        return None
    weight = one_parameter(found[1] - {("x", 1)})
    bias = bias_of(rest)
    if weight is False or bias is False or ("x", 1) not in found[1]:
        return None
    return Normalised("rms", found[0].epsilon, weight, bias)


def one_parameter(monomial: Monomial) -> Slot:
    """The parameter that a product is; None for the empty product, False for anything else."""
    if not monomial:
        return None
    if len(monomial) == 1:
        ((symbol, exponent),) = monomial
        if isinstance(symbol, Parameter) and exponent == 1:
            return symbol.value
    return False


def bias_of(rest: dict[Monomial, float]) -> Slot:
    """The parameter that is added; None where nothing is, False where it is more than a parameter."""
    if not rest:
        return None
    ((monomial, coefficient),) = rest.items()
    return one_parameter(monomial) if monomial and coefficient == 1 else False


def form_of(region: Region, site: NormSite) -> str:
    """The id of the spelling in the catalogue: the most telling of those that apply."""
    index = region.frame.index
    if any(is_op(node, "ReduceL2", "ReduceSumSquare", "LpNormalization", "ReduceSum") for node in site.nodes):
        return "B12"
    reduction = next(node for node in site.nodes if is_op(node, "ReduceMean"))
    if integer(reduction, "keepdims", 1) == 0:
        return "B11"
    axes = reduction.inputs[1] if len(reduction.inputs) > 1 else None
    if axes is not None and is_op(axes.producer(), "Range"):
        return "B10"
    if site.bias is not None:
        return "B9"
    weight_shape = index.shape(site.weight)
    if weight_shape is not None and sum(d != 1 for d in weight_shape) > len(site.axes):
        return "B14"
    if _splits_last_axis(index, site.x):
        return "B13"
    if site.weight is not None and is_op(site.weight.producer(), "Add"):
        return "B7"
    if site.weight is None:
        return "B8"
    if any(is_op(node, "Cast") for node in site.nodes):
        return "B5"
    return spelling(index, site.nodes)


def _splits_last_axis(index: GraphIndex, x: ir.Value | None) -> bool:
    """Whether x comes from a Reshape into heads, possibly with a Transpose behind it."""
    node = index.peel(x).producer() if x is not None else None
    if is_op(node, "Transpose") and node is not None and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if not is_op(node, "Reshape") or node is None:
        return False
    before, after = index.rank(node.inputs[0]), index.rank(node.outputs[0])
    return after == 4 and before in (None, 2, 3)

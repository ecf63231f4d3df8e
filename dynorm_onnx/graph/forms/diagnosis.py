"""Why what looked like a norm is none: the sentence that a near miss carries."""

from __future__ import annotations

from fractions import Fraction

from dynorm_onnx.graph.forms.algebra import Polynomial, Sum
from dynorm_onnx.graph.forms.anchors import Anchor, roots
from dynorm_onnx.graph.forms.inverse_root import split_inverse_root, spread
from dynorm_onnx.graph.forms.region import Region
from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import LARGEST_RANK

HALF = Fraction(1, 2)


def why_not_axes(index: GraphIndex, anchor: Anchor) -> str | None:
    """Why the axes of a reduction are not those of a norm; None if they can be."""
    axes = anchor.axes
    if axes is None:
        return "the axes of its mean are computed, beyond its rank, or positive where the rank is not known"
    if axes == ():
        return "its mean runs over all axes, the batch too"
    if axes != tuple(range(axes[0], axes[0] + len(axes))):
        return f"its mean runs over the axes {list(axes)}, as in a MeanVarianceNormalization or BatchNorm"
    ranks = (index.rank(value) for value in (anchor.node.inputs[0], anchor.squared, *roots(index, anchor)))
    rank = next((known for known in ranks if known is not None), None)
    if axes[0] < -(rank or LARGEST_RANK) or axes[-1] >= 0:
        return f"its mean runs over the axes {list(axes)}, which its input of {rank or 'unknown'} axes does not have"
    if rank is not None and axes[0] == -rank and len(axes) < rank:
        return "its mean runs over the batch"
    return None


def explain(region: Region) -> str:
    """The most telling difference between the formulas in a region and a norm's."""
    forms = [form for value, form in region.forms.items() if value is not region.frame.x]
    for form in forms:
        reason = _wrong_scale(form)
        if reason is not None:
            return reason
    if any(_is_sum_with_root(form) for form in forms):
        return "epsilon is added to the root, not under it"
    for form in forms:
        reason = _wrong_quotient(form)
        if reason is not None:
            return reason
    if any(split_inverse_root(m) is not None for form in forms for m in form.terms):
        return "what its inverse root multiplies is not the same as what was squared"
    return "its mean square is not made an inverse root that multiplies x"


def _wrong_scale(form: Polynomial) -> str | None:
    """A norm but for a constant factor."""
    factors = {}
    for monomial, coefficient in form.terms.items():
        found = split_inverse_root(monomial)
        symbols = {s for s, _ in found[1]} if found is not None else set()
        moments = symbols - {"count"}
        if found is None or moments not in ({"x"}, {"mean"}) or (found[0].kind == "rms") != (len(form.terms) == 1):
            return None
        factors[moments.pop()] = (found[0].kind, coefficient, "count" in symbols)
    if "x" not in factors:
        return None
    kind, scale, counted = factors["x"]
    if kind == "layer":
        return f"it is {scale:.6g} times a LayerNorm: its variance is no mean over all channels (C - 1?)"
    times = f"{scale:.6g}" + (" / sqrt(channels)" if counted else "")
    return (
        f"it is {times} times an RMSNorm: an L2 normalisation lacks the factor sqrt(channels), and other "
        "factors do not belong to a norm"
    )


def _is_sum_with_root(form: Polynomial) -> bool:
    """root + eps, whose inverse is then taken."""
    if len(form.terms) != 2 or frozenset() not in form.terms or form.has("x"):
        return False
    (monomial,) = (m for m in form.terms if m)
    return any(e == HALF and (s == "square" or isinstance(s, Sum)) for s, e in monomial)


def _wrong_quotient(form: Polynomial) -> str | None:
    """x over a root that belongs to something else."""
    for monomial in form.terms:
        for symbol, exponent in monomial:
            if ("x", Fraction(1)) not in monomial or not isinstance(symbol, Sum) or exponent >= 0:
                continue
            found = spread(symbol.polynomial)
            if found is None:
                return "what stands under its root is neither the mean square nor the variance plus epsilon"
            if exponent != -HALF:
                return f"the exponent of its mean square is {exponent}, not -1/2"
            centred = any(s == "mean" for m in form.terms for s, _ in m)
            if found.kind == "layer" and not centred:
                return "x is divided by its deviation without its mean being taken off"
            if found.kind == "rms" and centred:
                return "x minus its mean is divided by the root of the mean square, not by the deviation"
    return None

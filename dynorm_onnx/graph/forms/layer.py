"""LayerNorm in pieces, forms C1 to C9: reading (x - mean) / sqrt(variance + eps) * weight + bias."""

from __future__ import annotations

from dynorm_onnx.graph.forms.affine import Normalised
from dynorm_onnx.graph.forms.algebra import Monomial, Polynomial, product
from dynorm_onnx.graph.forms.inverse_root import Spread, split_inverse_root
from dynorm_onnx.graph.forms.region import Region
from dynorm_onnx.graph.forms.rms import bias_of, one_parameter
from dynorm_onnx.graph.norm_site import NormSite
from dynorm_onnx.graph.values.node_kinds import is_op

X, MEAN = product(("x", 1)), product(("mean", 1))
CENTRED = Polynomial({X: 1.0, MEAN: -1.0})
SQUARE = Polynomial.symbol("square")


def read(form: Polynomial, tolerance: float) -> Normalised | None:
    """The LayerNorm that a value is.

    Before: x * r [* weight] - mean(x) * r [* weight] [+ bias], r = (variance(x) + eps) ** -1/2; the
    variance is q - m^2 however it was computed, so TensorFlow's x * s + (bias - mean * s) is the same.
    When: both products have the same root and the same parameter, with coefficients 1 and -1.
    """
    rest: dict[Monomial, float] = {}
    halves: dict[Monomial, tuple[Spread, Monomial]] = {}
    for monomial, coefficient in form.terms.items():
        found = split_inverse_root(monomial)
        moment = X if found is not None and found[1] >= X else MEAN
        if found is None or not found[1] >= moment:
            rest[monomial] = coefficient
            continue
        wanted = 1.0 if moment == X else -1.0
        if moment in halves or abs(coefficient - wanted) > tolerance:
            return None
        halves[moment] = (found[0], found[1] - moment)
    if len(halves) != 2 or halves[X] != halves[MEAN] or halves[X][0].kind != "layer" or len(rest) > 1:
        return None
    weight, bias = one_parameter(halves[X][1]), bias_of(rest)
    if weight is False or bias is False:
        return None
    return Normalised("layer", halves[X][0].epsilon, weight, bias)


def form_of(region: Region, site: NormSite) -> str:
    """The id of the spelling in the catalogue: the most telling of those that apply."""
    index = region.frame.index
    if len(site.axes) > 1:
        return "C8"
    if site.axes != (-1,):
        return "C5"
    inside = [region.forms[node.outputs[0]] for node in site.nodes if node.outputs[0] in region.forms]
    if any(_scales_uncentred(form) for form in inside):
        return "C3"
    if SQUARE in inside:
        return "C4"
    readers = index.consumers(site.y) if site.y is not None else []
    if site.weight is None and sum(is_op(node, "Mul") for node in readers) > 1:
        return "C9"
    if site.weight is None or site.bias is None:
        return "C7"
    return "C2" if any(is_op(node, "Cast") for node in site.nodes) else "C1"


def _scales_uncentred(form: Polynomial) -> bool:
    """x * r [* weight], from which mean * r [* weight] is still to be taken."""
    if len(form.terms) != 1:
        return False
    (monomial,) = form.terms
    found = split_inverse_root(monomial)
    return found is not None and found[1] >= X and found[0].kind == "layer"

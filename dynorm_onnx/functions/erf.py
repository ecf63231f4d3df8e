"""The error function in float64: numpy has none, and ONNX Runtime's CPU provider has Erf in float32 only.

For numpy by its Taylor series. In standard operators by rational approximations of W. J. Cody (Mathematics of
Computation 23, 1969): one for erf(z) / z near zero, one for erfc(z) exp(z^2) further out. The second is fitted up to
|z| = 4 and used up to 6; there erfc is below 2e-8, so that its error does not reach the last place of erf.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import onnx
from onnx import TensorProto, helper

NEAR = 0.46875
FAR = 6.0  # erf(6) is 1 in float64
_PLACES = 4096  # to each unit: from the nearest one, the fourth power of the distance is less than float64 tells
# Numerator and denominator of each, highest power first.
NEAR_POLYNOMIALS = (
    (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2,
     3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)  # fmt: skip
FAR_POLYNOMIALS = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
     2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
     1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
     3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)  # fmt: skip


def erf(z: np.ndarray) -> np.ndarray:
    """erf(z), element by element, float64, within an ulp of 1 or, near zero, of the result; NaN stays NaN.

    A fit asks for it many thousand times: a Taylor polynomial around the nearest of the places at which it is known
    takes a sixth of the time of rational approximations.
    """
    z = np.asarray(z, np.float64)
    values, slopes = _table()
    distance = np.minimum(np.abs(z), FAR, out=np.empty_like(z))
    with np.errstate(invalid="ignore"):
        place = (distance * _PLACES + 0.5).astype(np.intp)  # of NaN anything
    centre = place * (1 / _PLACES)
    distance -= centre
    # With s = erf' the derivatives are -2 z s and (4 z^2 - 2) s.
    series = centre * centre
    series *= 2 / 3
    series -= 1 / 3
    for less in (centre, -1.0):
        series *= distance
        series -= less
    series *= distance
    series *= slopes.take(place, mode="clip")
    series += values.take(place, mode="clip")
    return np.asarray(np.copysign(series, z))


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """erf and its derivative at _PLACES places to each unit, from 0 to FAR."""
    places = np.arange(int(FAR * _PLACES) + 1) / _PLACES
    return np.array([math.erf(place) for place in places]), 2 / math.sqrt(math.pi) * np.exp(-places * places)


def erf_nodes_double(z: str, result: str) -> list[onnx.NodeProto]:
    """Standard operators (opset 11 on) that compute `result` = erf(`z`) in double, as erf() does."""
    nodes = [_constant("near", NEAR), _constant("far", FAR), _constant("one", 1.0)]

    def add(op_type: str, inputs: list[str], output: str) -> str:
        nodes.append(helper.make_node(op_type, inputs, [output]))
        return output

    def ratio(polynomials: tuple[tuple[float, ...], tuple[float, ...]], at: str, prefix: str) -> str:
        parts = []
        for part, coefficients in zip(("numerator", "denominator"), polynomials, strict=True):
            total = f"{prefix}_{part}_0"
            nodes.append(_constant(total, coefficients[0]))
            for power, coefficient in enumerate(coefficients[1:], 1):
                name = f"{prefix}_{part}_{power}"
                nodes.append(_constant(f"{name}_add", coefficient))
                total = add("Add", [add("Mul", [total, at], f"{name}_up"), f"{name}_add"], name)
            parts.append(total)
        return add("Div", parts, f"{prefix}_ratio")

    size = add("Abs", [z], "size")
    small = add("Mul", [z, ratio(NEAR_POLYNOMIALS, add("Mul", [z, z], "square"), "near")], "small")
    bounded = add("Min", [size, "far"], "bounded")
    decay = add("Exp", [add("Neg", [add("Mul", [bounded, bounded], "bounded_square")], "minus")], "decay")
    tail = add("Mul", [decay, ratio(FAR_POLYNOMIALS, bounded, "far")], "tail")
    large = add("Mul", [add("Sign", [z], "sign"), add("Sub", ["one", tail], "rest")], "large")
    beyond = add("Greater", [size, "near"], "beyond")  # not Less: false for NaN, which `small` keeps
    nodes.append(helper.make_node("Where", [beyond, large, small], [result]))
    return nodes


def _constant(name: str, value: float) -> onnx.NodeProto:
    tensor = helper.make_tensor(name, TensorProto.DOUBLE, [], [value])
    return helper.make_node("Constant", [], [name], value=tensor)

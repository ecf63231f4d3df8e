"""DyISRU (Stollenwerk, arXiv 2503.21708): y = weight * x / sqrt(beta + x^2) + bias.

With beta_i = sum_{j != i} x_j^2 and weight = sqrt(C) gamma this is RMSNorm with epsilon 0; a
constant beta is the one approximation made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnxscript import script, values

from dynorm_onnx.functions.base import DOMAIN, DOMAIN_VERSION, Function
from dynorm_onnx.functions.compact import FINITE_FLOAT32, Argument

# In float32 x^2 must stay finite; the function reaches its limit long before this |x|. In double
# x^2 is finite up to |x| = 1e154, and ONNX Runtime has no Clip in double before opset 12.
LARGEST_FLOAT32 = 1e19


def core(x: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """x / sqrt(beta + x^2) for any finite x and beta > 0, without overflow."""
    x, beta = np.asarray(x), np.asarray(beta)
    if not _squares_are_exact(x, beta):
        return np.asarray(x / np.hypot(np.sqrt(beta), x))
    root = np.square(x)  # a fifth of the time of hypot
    root += beta
    np.sqrt(root, out=root)
    return np.divide(x, root, out=root)


def _squares_are_exact(x: np.ndarray, beta: np.ndarray) -> bool:
    """Whether x^2 + beta, of the shape and type of x, neither overflows nor loses digits to numbers too small."""
    if x.dtype not in (np.float32, np.float64) or np.result_type(x, beta) != x.dtype or not x.size or not x.ndim:
        return False
    if np.broadcast_shapes(x.shape, beta.shape) != x.shape:
        return False
    info = np.finfo(x.dtype)
    largest = np.sqrt(info.max) / 2
    in_range = -largest <= x.min() and x.max() <= largest
    return bool(in_range and info.tiny / info.eps <= beta.min() and beta.max() <= info.max / 2)


def in_standard_operators(op: values.Opset, element_type: int, bounded: bool) -> onnx.FunctionProto:
    """The core for one opset and computing type; `bounded` where no square of x can overflow."""
    highest = helper.make_tensor("highest", TensorProto.FLOAT, [], [LARGEST_FLOAT32])
    lowest = helper.make_tensor("lowest", TensorProto.FLOAT, [], [-LARGEST_FLOAT32])
    domain = values.Opset(DOMAIN, DOMAIN_VERSION)

    @script(domain, default_opset=op)
    def dyisru(x, beta):  # type: ignore[no-untyped-def]
        bounded = op.Clip(x, op.Constant(value=lowest), op.Constant(value=highest))
        return bounded / op.Sqrt(bounded * bounded + beta)

    @script(domain, default_opset=op)
    def dyisru_before_opset_11(x, beta):  # type: ignore[no-untyped-def]
        bounded = op.Clip(x, min=-LARGEST_FLOAT32, max=LARGEST_FLOAT32)
        return bounded / op.Sqrt(bounded * bounded + beta)

    @script(domain, default_opset=op)
    def dyisru_bounded(x, beta):  # type: ignore[no-untyped-def]
        return x / op.Sqrt(x * x + beta)

    if bounded or element_type == TensorProto.DOUBLE:
        chosen = dyisru_bounded
    else:
        chosen = dyisru if op.version >= 11 else dyisru_before_opset_11
    return chosen.to_function_proto()  # type: ignore[no-any-return]


def compact(of: Argument, beta: np.ndarray) -> Any:
    """The core of x or, in one root with the gain, of g x: x / sqrt(x^2 + beta (1 + sum_j c_j x_j^2))."""
    if of.coupling is not None and of.largest_total(beta) > FINITE_FLOAT32:
        of = of.gained()
    x = of.x if of.out.is_double else of.bounded(LARGEST_FLOAT32)
    square = of.out.op("Mul", [x, x], "square")
    root = of.out.op("Sqrt", [of.out.op("Add", [square, of.total(beta)], "sum")], "root")
    return of.out.op("Div", [x, root], "core")


def from_steepness(steepness: np.ndarray, shift: np.ndarray) -> dict[str, np.ndarray]:
    """beta = 1 / steepness^2, which gives the core the slope `steepness` at zero."""
    return {"beta": steepness**-2.0}


DYISRU = Function("dyisru", "DyISRU", ("beta",), core, in_standard_operators, compact, from_steepness)

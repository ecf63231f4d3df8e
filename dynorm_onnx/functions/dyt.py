"""DyT (Zhu et al., arXiv 2503.10622): y = weight * tanh(alpha x) + bias.

Near zero alpha corresponds to DyISRU's beta = 1 / alpha^2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnxscript import script, values

from dynorm_onnx.functions.base import DOMAIN, DOMAIN_VERSION, Function
from dynorm_onnx.functions.compact import Argument


def core(x: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """tanh(alpha x)."""
    return np.tanh(alpha * x)


def in_standard_operators(op: values.Opset, element_type: int, bounded: bool) -> onnx.FunctionProto:
    """The core for one opset; the same in every computing type and for every x."""

    @script(values.Opset(DOMAIN, DOMAIN_VERSION), default_opset=op)
    def dyt(x, alpha):  # type: ignore[no-untyped-def]
        return op.Tanh(alpha * x)

    return dyt.to_function_proto()  # type: ignore[no-any-return]


def compact(of: Argument, alpha: np.ndarray) -> Any:
    """The core; the same in every computing type."""
    return of.out.op("Tanh", [of.times(alpha)], "core")


def from_steepness(steepness: np.ndarray, shift: np.ndarray) -> dict[str, np.ndarray]:
    """alpha = steepness."""
    return {"alpha": steepness}


DYT = Function("dyt", "DyT", ("alpha",), core, in_standard_operators, compact, from_steepness)

"""Derf (Chen et al., arXiv 2512.10938): y = weight * erf(alpha x + shift) + bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from onnxscript import script, values

from dynorm_onnx.functions.base import DOMAIN, DOMAIN_VERSION, Function
from dynorm_onnx.functions.compact import Argument, shifted, written
from dynorm_onnx.functions.erf import erf, erf_nodes_double


def core(x: np.ndarray, alpha: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """erf(alpha x + shift)."""
    return erf(alpha * x + shift)


def in_standard_operators(op: values.Opset, element_type: int, bounded: bool) -> onnx.FunctionProto:
    """The core for one opset and computing type; the same for every x."""

    @script(values.Opset(DOMAIN, DOMAIN_VERSION), default_opset=op)
    def derf(x, alpha, shift):  # type: ignore[no-untyped-def]
        return op.Erf(alpha * x + shift)

    proto: onnx.FunctionProto = derf.to_function_proto()
    if element_type == TensorProto.DOUBLE:
        *leading, last = proto.node
        del proto.node[:]
        proto.node.extend([*leading, *erf_nodes_double(last.input[0], last.output[0])])
    return proto


def compact(of: Argument, alpha: np.ndarray, shift: np.ndarray) -> Any:
    """The core; in double by erf.py's operators."""
    z = shifted(of.out, of.times(alpha), shift, "shifted")
    if of.out.is_double:
        return written(of.out, erf_nodes_double("z", "erf"), {"z": z})["erf"]
    return of.out.op("Erf", [z], "core")


def from_steepness(steepness: np.ndarray, shift: np.ndarray) -> dict[str, np.ndarray]:
    """alpha = steepness, and the shift as it is."""
    return {"alpha": steepness, "shift": shift}


DERF = Function("derf", "Derf", ("alpha", "shift"), core, in_standard_operators, compact, from_steepness)

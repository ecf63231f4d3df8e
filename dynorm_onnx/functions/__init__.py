"""The functions that replace a norm. A new one is a file here, a line in FUNCTIONS, and a functor
in custom_ops/formulas.h."""

from __future__ import annotations

from dynorm_onnx.functions.base import DOMAIN, DOMAIN_VERSION, Function, NormParameters
from dynorm_onnx.functions.body import onnx_function
from dynorm_onnx.functions.derf import DERF
from dynorm_onnx.functions.dyisru import DYISRU
from dynorm_onnx.functions.dyt import DYT

FUNCTIONS = (DYISRU, DYT, DERF)
REGISTRY = {function.name: function for function in FUNCTIONS}

__all__ = [
    "DOMAIN",
    "DOMAIN_VERSION",
    "FUNCTIONS",
    "REGISTRY",
    "Function",
    "NormParameters",
    "onnx_function",
]

"""The functions that replace a norm. A new one is a file here, a line in FUNCTIONS, and a functor
in custom_ops/formulas.h."""

from __future__ import annotations

from dynorm_onnx.functions.base import DOMAIN, DOMAIN_VERSION, FORMS, Form, Function, NormParameters
from dynorm_onnx.functions.body import onnx_function
from dynorm_onnx.functions.coupling import Coupling
from dynorm_onnx.functions.derf import DERF
from dynorm_onnx.functions.dyisru import DYISRU
from dynorm_onnx.functions.dyt import DYT

FUNCTIONS = (DYISRU, DYT, DERF)
"""Every function that can replace a norm."""

REGISTRY = {function.name: function for function in FUNCTIONS}
"""The same by name: "dyisru", "dyt", "derf"."""

OPERATORS = {function.node_type(form): (function, form) for function in FUNCTIONS for form in FORMS}
"""Every operator of the domain `dynorm` by its type."""

__all__ = [
    "DOMAIN",
    "DOMAIN_VERSION",
    "FORMS",
    "FUNCTIONS",
    "OPERATORS",
    "REGISTRY",
    "Coupling",
    "Form",
    "Function",
    "NormParameters",
    "onnx_function",
]

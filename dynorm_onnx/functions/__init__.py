"""The functions that replace a norm: a file each. What another one takes says docs/contributing.md.

`base` is what each of them is, `body` its operators' bodies in the file, `compact` the same for known parameters;
`coupling` is the gain of channels that stay in the norm's sum, `erf` the error function in float64.
"""

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

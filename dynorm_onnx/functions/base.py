"""What every function that replaces a norm is: its name, its parameters, its core in numpy and ONNX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnxscript import values

from dynorm_onnx.functions.coupling import INPUTS, Coupling, applied

DOMAIN = "dynorm"
"""The domain of our operators in a file."""

DOMAIN_VERSION = 1
"""Its version, which a file imports."""

# The part of a body that differs from function to function, for one opset and computing type, and for any x or for one
# whose squares are finite.
CoreScript = Callable[[values.Opset, int, bool], onnx.FunctionProto]


# (what it is of, the parameters) -> the core written out, a value of the argument's operators.
CompactCore = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class NormParameters:
    """The parameters of one replaced norm; all float64 while they are fitted.

    weight and bias have shape [C]; `scalars` maps the function's parameter names (beta; alpha;
    alpha and shift) to arrays of shape [1] or [C]. `coupling` says which channels stay in the norm's sum; None where
    the function is one of single channels alone.
    """

    weight: np.ndarray
    bias: np.ndarray
    scalars: Mapping[str, np.ndarray]
    coupling: Coupling | None = None


@dataclasses.dataclass(frozen=True)
class Form:
    """Which operator of a function: with the residual sum (`skip`), with channels that stay in the sum (`coupled`)."""

    skip: bool = False
    coupled: bool = False


FORMS = tuple(Form(skip, coupled) for coupled in (False, True) for skip in (False, True))
"""The four forms of every function."""


@dataclasses.dataclass(frozen=True)
class Function:
    """An element-wise function y_i = weight_i * core(x_i; parameters_i) + bias_i.

    `core(x, **parameters)` works in the dtype of its arguments; it rises with x and lies in [-1, 1].
    `script(op, element_type, bounded)` is the same in standard operators: a function of x and the parameters, all of
    that type (float32, or double in a double model), `bounded` where x^2 cannot overflow. `compact(argument,
    **parameters)` writes it for parameters that are known, see compact.py.
    """

    name: str  # "dyisru", as on the command line
    op_type: str  # "DyISRU", in the domain `dynorm`
    parameter_names: tuple[str, ...]
    core: Callable[..., np.ndarray]
    script: CoreScript
    compact: CompactCore
    # The parameters whose core has slope `steepness` (up to a constant) where x = -shift / steepness.
    from_steepness: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]

    @property
    def has_shift(self) -> bool:
        """Whether the core can be moved along x."""
        return "shift" in self.parameter_names

    @property
    def skip_op_type(self) -> str:
        """The operator that takes X and skip and also gives out their sum."""
        return self.node_type(Form(skip=True))

    def node_type(self, form: Form) -> str:
        """The operator of one form: `[Skip][Coupled]DyISRU`."""
        return f"{'Skip' * form.skip}{'Coupled' * form.coupled}{self.op_type}"

    def input_names(self, form: Form) -> tuple[str, ...]:
        """The inputs of the operator of one form, in order."""
        data = ("X", "skip") if form.skip else ("X",)
        return (*data, "weight", "bias", *self.parameter_names, *(INPUTS if form.coupled else ()))

    def reference(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, **parameters: np.ndarray) -> np.ndarray:
        """The function in float64: x of shape [..., C], weight and bias [C], parameters [1] or [C]."""
        wide = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
        core = self.core(np.asarray(x, np.float64), **wide)
        return np.asarray(weight, np.float64) * core + np.asarray(bias, np.float64)

    def __call__(self, x: np.ndarray, parameters: NormParameters) -> np.ndarray:
        """What a node with these parameters gives, coupled channels included, in float64."""
        gained = applied(parameters.coupling, np.asarray(x, np.float64))
        return self.reference(gained, parameters.weight, parameters.bias, **parameters.scalars)

"""The functions in as few standard operators as their parameters need, for files without functions of their own.

A body (body.py) serves every node of its operator, so that it adds biases that are zero and multiplies by weights that
are one. Here the parameters are known: what would do nothing is left out, and what is the same for all tokens is
computed beforehand, in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import numpy_helper

from dynorm_onnx.functions.coupling import LARGEST, Coupling

FINITE_FLOAT32 = 1e38
"""What a number in float32 may come to, with some room for what is added to it."""


class Operators(Protocol):
    """Where operators are written, one at a time. Its values are whatever it gives out; they are only handed on."""

    is_double: bool
    """Whether double is the type that is computed in; else float32."""

    def op(self, op_type: str, inputs: Sequence[Any], name: str, attributes: Mapping[str, int] | None = None) -> Any:
        """The one output of a new operator of the default domain."""

    def constant(self, array: np.ndarray, name: str) -> Any:
        """A constant of the type that is computed in, float32 or double."""

    def indices(self, numbers: np.ndarray, name: str) -> Any:
        """A constant int64 vector."""

    def summed(self, x: Any, name: str) -> Any:
        """[..., 1] of x [..., k]."""

    def clip(self, x: Any, limit: float, name: str) -> Any:
        """x between -limit and limit."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """What a core is applied to: x [..., C], or g x where channels are coupled, see coupling.py.

    `largest` bounds |x|, by its type or by what the graph is made of; infinity where nothing does.
    """

    out: Operators
    x: Any
    largest: float
    coupling: Coupling | None

    def times(self, factor: np.ndarray) -> Any:
        """factor g x; factor is [1] or [C], float64."""
        if self.coupling is None:
            return scaled(self.out, self.x, factor, "scaled")
        single = factor.size == 1 and float(factor[0]) > 0
        # factor g x = x / sqrt((1 + sum) / factor^2)
        root = self.out.op("Sqrt", [self.total(1 / factor**2 if single else np.ones(1))], "inverse_gain")
        gained = self.out.op("Div", [self.x, root], "gained")
        return gained if single else scaled(self.out, gained, factor, "scaled")

    def total(self, scale: np.ndarray) -> Any:
        """scale (1 + sum_j c_j x_j^2) for every token; scale is positive, [1], which costs no operator, or [C]."""
        if self.coupling is None:
            return self.out.constant(scale, "scale")
        single = scale if scale.size == 1 else np.ones(1)
        kept = self._coupled_channels()
        squares = self.out.op("Mul", [kept, kept], "coupled_squares")
        strengths = np.asarray(self.coupling.strengths, np.float64) * single
        # Not a MatMul, which tools that quantise layers would take for one, nor ReduceSumSquare, whose shape ONNX
        # Runtime's own tools (1.32) cannot infer.
        summed = scaled(self.out, squares, strengths, "coupled_weighted")
        if strengths.size > 1:
            summed = self.out.summed(summed, "coupled_sum")
        total = self.out.op("Add", [summed, self.out.constant(single, "one")], "coupled_total")
        return total if single is scale else self.out.op("Mul", [total, self.out.constant(scale, "scale")], "spread")

    def largest_total(self, scale: np.ndarray) -> float:
        """A bound of total(scale)."""
        bound = float(np.max(np.abs(scale)))
        if self.coupling is None:
            return bound
        with np.errstate(over="ignore"):
            return bound * (1 + float(np.sum(self.coupling.strengths)) * min(self.largest, LARGEST) ** 2)

    def gained(self) -> Argument:
        """The same without coupled channels: g x is computed."""
        return dataclasses.replace(self, x=self.times(np.ones(1)), coupling=None)

    def bounded(self, limit: float) -> Any:
        """x, clipped to +-limit where it may lie beyond."""
        return self.x if self.largest <= limit else self.out.clip(self.x, limit, "bounded")

    def _coupled_channels(self) -> Any:
        assert self.coupling is not None
        indices = self.out.indices(self.coupling.channels, "channels")
        kept = self.out.op("Gather", [self.x, indices], "coupled", {"axis": -1})
        return kept if self.largest <= LARGEST else self.out.clip(kept, LARGEST, "coupled_bounded")


def scaled(out: Operators, x: Any, factor: np.ndarray, name: str) -> Any:
    """factor x; x itself where the factor is one."""
    return x if np.all(factor == 1) else out.op("Mul", [x, out.constant(factor, f"{name}_by")], name)


def shifted(out: Operators, x: Any, shift: np.ndarray, name: str) -> Any:
    """x + shift; x itself where the shift is zero."""
    return x if not np.any(shift) else out.op("Add", [x, out.constant(shift, f"{name}_by")], name)


def written(out: Operators, nodes: Sequence[onnx.NodeProto], values: dict[str, Any]) -> dict[str, Any]:
    """The values by name, with what nodes without attributes, but for those of constants, make of them."""
    for node in nodes:
        (name,) = node.output
        if node.op_type == "Constant":
            values[name] = out.constant(numpy_helper.to_array(node.attribute[0].t), name)
        else:
            values[name] = out.op(node.op_type, [values[source] for source in node.input], name)
    return values

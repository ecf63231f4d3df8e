"""Arithmetic, comparison and logic, element by element."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from dynorm_onnx.pytorch.graph.operators.base import Node, Operator, Tensor, operator

_UNARY: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Asin": torch.asin, "Atan": torch.atan, "Acosh": torch.acosh,
    "Asinh": torch.asinh, "Atanh": torch.atanh, "Ceil": torch.ceil,
    "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor,
    "Log": torch.log, "Neg": torch.neg, "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal, "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin,
    "Sinh": torch.sinh, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh, "BitwiseNot": torch.bitwise_not,
}  # fmt: skip
_BINARY: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt,
    "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le, "And": torch.logical_and, "Or": torch.logical_or,
    "Xor": torch.logical_xor, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip
_VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add,
}  # fmt: skip


def _plain(function: Callable[..., Tensor]) -> Operator:
    return lambda node, *inputs: function(*inputs)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda node, *inputs: functools.reduce(function, inputs)


for _name, _function in (_UNARY | _BINARY).items():
    operator(_name)(_plain(_function))
for _name, _function in _VARIADIC.items():
    operator(_name)(_folded(_function))


@operator("Mean")
def mean(node: Node, *inputs: Tensor) -> Tensor:
    """The mean of the inputs."""
    return functools.reduce(torch.add, inputs) / len(inputs)


@operator("Div")
def div(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """With the sign of the divisor, or with fmod=1 of the dividend."""
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


@operator("Pow")
def power(node: Node, x: Tensor, exponent: Tensor) -> Tensor:
    """The result has the type of x; a square is a product, whose gradient is cheaper."""
    if exponent.numel() == 1 and exponent.device.type == "cpu" and not exponent.requires_grad:
        number = exponent.item()
        return x * x if number == 2 else torch.pow(x, number).to(x.dtype)
    return torch.pow(x, exponent).to(x.dtype)


@operator("BitShift")
def bit_shift(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """In the direction that the attribute names."""
    return torch.bitwise_left_shift(a, b) if node.get("direction") == "LEFT" else torch.bitwise_right_shift(a, b)


@operator("IsInf")
def is_inf(node: Node, x: Tensor) -> Tensor:
    """Either sign, unless the attributes leave one out."""
    found = torch.isinf(x)
    if not node.get("detect_positive", 1):
        found = found & (x < 0)
    return found if node.get("detect_negative", 1) else found & (x > 0)


@operator("IsNaN")
def is_nan(node: Node, x: Tensor) -> Tensor:
    """Which elements are NaN; where none is, one False for all of them, which Where makes use of.

    Exported attention asks this of all its probabilities, for the case of a token that sees none. On the CPU their sum
    tells it ten times as fast as a look at each, and a choice between each and zero.
    """
    if x.device.type == "cpu" and not bool(x.detach().sum().isnan()):
        return torch.zeros((), dtype=torch.bool).expand(x.shape)
    return torch.isnan(x)


@operator("Where")
def where(node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where the condition holds, else b."""
    if condition.numel() and not any(condition.stride()):  # one element for all
        shape = torch.broadcast_shapes(condition.shape, a.shape, b.shape)
        chosen = a if bool(condition.flatten()[0]) else b
        return chosen.to(torch.result_type(a, b)).expand(shape)
    return torch.where(condition, a, b)


@operator("Clip")
def clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds are inputs, or attributes before opset 11."""
    least = node.get("min") if low is None else low
    most = node.get("max") if high is None else high
    if least is not None:
        x = torch.clamp(x, min=least)
    return torch.clamp(x, max=most) if most is not None else x


@operator("CumSum", host=(1,))
def cumsum(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    """From either end; `exclusive` leaves each element out of its own sum."""
    along = int(axis.item())
    wide = x.flip(along) if node.get("reverse", 0) else x
    total = torch.cumsum(wide, along, dtype=x.dtype)
    total = total - wide if node.get("exclusive", 0) else total
    return total.flip(along) if node.get("reverse", 0) else total

"""Partial decoupling: a few channels stay in the sum that a norm divides by.

RMSNorm is y_i = gamma_i sqrt(C) x_i / sqrt(sum_j x_j^2). DyISRU promotes all squares but x_i^2 to a constant
("decoupling in function space", arXiv 2503.21708). Here the squares of a few channels M keep their place, as a gain
that comes before any of the functions:

    g = 1 / sqrt(1 + sum_{j in M} c_j x_j^2),        y_i = w_i f(g x_i; parameters_i) + b_i

For DyISRU that is y_i = w_i x_i / sqrt(x_i^2 + sum_{j in M} beta_i c_j x_j^2 + beta_i) + b_i: with c_j = 1 / beta, all
beta_i = beta, the squares of M enter as they do in the norm. M empty is the element-wise function, M of all channels a
norm. What it is for: a token that is massive in one channel is an attention sink in many language models, and a norm
mutes its other channels, which no function of single channels can do (docs/quality.md).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from onnx import TensorProto, helper

INPUTS = ("channels", "coupling")
"""The inputs behind the function's own: int64 [k], the indices of the channels; float32 [k], their c_j >= 0."""

LARGEST = 1e15
"""|x_j| above it counts as this much, so that the sum of squares stays finite in float32."""


@dataclasses.dataclass(frozen=True)
class Coupling:
    """Which channels stay in the sum, and how strongly.

    `channels` is int64 [k], indices into the last axis, each once; `strengths` float64 [k], c_j >= 0, in units of
    1 / x_j^2.
    """

    channels: np.ndarray
    strengths: np.ndarray

    def gain(self, x: np.ndarray) -> np.ndarray:
        """g for every token: x [..., C] gives [..., 1], in the type of x if that is float32 or float64."""
        kept = np.clip(x[..., self.channels], -LARGEST, LARGEST)
        squares = np.square(kept) @ np.asarray(self.strengths, x.dtype)
        return 1 / np.sqrt(1 + squares[..., None])

    def applied(self, x: np.ndarray) -> np.ndarray:
        """g x: x [..., C] of float32 or float64 gives the same shape and type."""
        return x * self.gain(x)

    def pulled_back(self, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The gradient of a scalar by x [..., C], given that by g x, all of one shape and float type.

        dg / dx_j = -g^3 c_j x_j.
        """
        gain = self.gain(x)
        by_x = gain * gradient
        by_gain = np.sum(gradient * x, axis=-1, keepdims=True)
        by_x[..., self.channels] -= gain**3 * by_gain * np.asarray(self.strengths, x.dtype) * x[..., self.channels]
        return by_x


def applied(coupling: Coupling | None, x: np.ndarray) -> np.ndarray:
    """g x, or x itself where no channel is coupled."""
    return x if coupling is None else coupling.applied(x)


def gain_nodes(x: str, result: str, compute: int, bounded: bool) -> list[onnx.NodeProto]:
    """`result` = g `x` in standard operators, x [..., C] of type `compute`, `bounded` where |x| is at most LARGEST;
    reads the body's inputs INPUTS."""
    channels, coupling = INPUTS
    node = helper.make_node
    gathered = "coupled_bounded" if bounded else "coupled"
    return [
        node("Gather", [x, channels], [gathered], axis=-1),
        *([] if bounded else _clip(gathered, "coupled_bounded", compute)),
        node("Cast", [coupling], ["wide_coupling"], to=compute),
        node("Constant", [], ["column"], value=helper.make_tensor("column", TensorProto.INT64, [2], [-1, 1])),
        node("Reshape", ["wide_coupling", "column"], ["strengths"]),
        node("Constant", [], ["one"], value=helper.make_tensor("one", compute, [], [1.0])),
        node("Mul", ["coupled_bounded", "coupled_bounded"], ["coupled_squares"]),
        node("MatMul", ["coupled_squares", "strengths"], ["coupled_sum"]),
        node("Add", ["coupled_sum", "one"], ["coupled_total"]),
        node("Sqrt", ["coupled_total"], ["inverse_gain"]),
        node("Div", [x, "inverse_gain"], [result]),
    ]


def _clip(name: str, result: str, compute: int) -> list[onnx.NodeProto]:
    """Bounded to +-LARGEST; by Min and Max, which are spelled alike in every opset from 8 on."""
    limits = [
        helper.make_node("Constant", [], [limit], value=helper.make_tensor(limit, compute, [], [value]))
        for limit, value in (("lowest_coupled", -LARGEST), ("highest_coupled", LARGEST))
    ]
    return [
        *limits,
        helper.make_node("Max", [name, "lowest_coupled"], [f"{result}_below"]),
        helper.make_node("Min", [f"{result}_below", "highest_coupled"], [result]),
    ]

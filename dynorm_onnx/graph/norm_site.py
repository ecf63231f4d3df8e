"""What a norm in a graph is: NormSite (replaceable), Refusal (recognised, not replaceable), NearMiss."""

from __future__ import annotations

import dataclasses
from typing import Literal

import onnx_ir as ir

Kind = Literal["rms", "layer"]


@dataclasses.dataclass(frozen=True, eq=False)
class NormSite:
    """One norm that can be replaced.

    With x of shape [..., C] (axes = (-1,)), the site computes, for kind "rms",
    y = x / sqrt(mean(x^2) + epsilon) * weight + bias, and for kind "layer" the same of
    x - mean(x); means are over `axes`. Fused operators (forms A4 to A8) keep their operands in the
    node: there x or y may be None, because the value exists only inside the operator.
    """

    name: str  # unique in the model, stable: the node's name, else its output's
    kind: Kind
    form: str  # id in the catalogue of spellings, "B3"
    nodes: tuple[ir.Node, ...]  # covered, in graph order; they go when the site is replaced
    x: ir.Value | None  # what is normalised, before any Cast
    y: ir.Value | None  # what carries the result, after any Cast; None for A7
    weight: ir.Value | None  # any value that does not depend on x; None means 1
    bias: ir.Value | None  # likewise; None means 0
    epsilon: float  # added to the mean square / variance
    axes: tuple[int, ...]  # normalised axes, negative, ascending: (-1,) or (-2, -1), (1,) never
    channels: int | None  # elements that one mean runs over; None where the shape does not say
    dtype: ir.DataType  # of y
    residual: ir.Value | None = None  # the sum x where a skip operator also gives it out
    part: Literal["q", "k"] | None = None  # which norm of an attention node (A7)
    rank: int | None = None  # of x, where no shape tells it: at this one the nodes were proved

    @property
    def graph(self) -> ir.Graph:
        """The graph that its nodes lie in: the model's, or a body."""
        graph = self.nodes[-1].graph
        assert isinstance(graph, ir.Graph)
        return graph


@dataclasses.dataclass(frozen=True, eq=False)
class Refusal:
    """A norm that was recognised and cannot be replaced."""

    name: str
    kind: Kind
    form: str
    channels: int | None
    dtype: ir.DataType | None
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class NearMiss:
    """Something that looked like a norm and is not one (or could not be proved to be one)."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class SitesFound:
    """All that find_sites() saw; `sites` in topological order, graph by graph."""

    sites: tuple[NormSite, ...]
    refused: tuple[Refusal, ...]
    near_misses: tuple[NearMiss, ...]

"""What the operators that take quantised weights themselves are read as."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from dynorm_onnx.graph.quantised.weight import QuantisedWeight


@dataclasses.dataclass(frozen=True)
class QuantisedProduct:
    """y = x W + bias over the last axis of x.

    `nodes` are all that what may change goes through, from the operator to the one that puts out y; `bias` is the place
    of a bias among the operator's operands.
    """

    x: ir.Value  # float
    weight: QuantisedWeight
    nodes: tuple[ir.Node, ...]
    bias: int | None = None

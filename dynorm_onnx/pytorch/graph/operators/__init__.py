"""The operators, a file per family. One more is a function with its name above it."""

from __future__ import annotations

from dynorm_onnx.pytorch.graph.operators import (  # noqa: F401  they register themselves
    activations,
    attention,
    control,
    experts,
    indexing,
    linear,
    math,
    norms,
    pooling,
    quantised,
    reduce,
    rotary,
    shape,
)
from dynorm_onnx.pytorch.graph.operators.base import OPERATORS, TORCH_TYPES, Entry, Node

__all__ = ["OPERATORS", "TORCH_TYPES", "Entry", "Node"]

"""What an operator is here: a function of a node and its inputs, found by domain and name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from dynorm_onnx.errors import ModelError

TORCH_TYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
}


@dataclasses.dataclass(frozen=True)
class Node:
    """One node as its operator sees it.

    `attributes` holds Python numbers, strings and tuples, tensors, and for bodies of If, Loop and Scan
    callables. `float_type` is the type that all floats of the graph are computed in, or None for their own.
    """

    name: str
    domain: str
    op_type: str
    opset: int  # the version of its domain that the model imports
    attributes: Mapping[str, Any]
    outputs: int  # how many it has, optional ones that nothing reads included
    float_type: torch.dtype | None = None
    input_types: Sequence[ir.DataType | None] = ()  # as the graph says; torch has fewer

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default where the node does not have it."""
        return self.attributes.get(name, default)

    def dtype(self, number: int) -> torch.dtype:
        """The torch type of an ONNX type number. Raises ModelError for one that torch has not."""
        kind = TORCH_TYPES.get(ir.DataType(number))
        if kind is None:
            raise self.unsupported(f"the type {ir.DataType(number).name}")
        return self.float_type if self.float_type is not None and kind.is_floating_point else kind

    def unsupported(self, what: str) -> ModelError:
        """The error for a use of the operator that is not there."""
        return ModelError(f"{self}: {what} is not supported when the graph runs in PyTorch")

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.domain or 'ai.onnx'}::{self.op_type}, opset {self.opset})"


Operator = Callable[..., Any]
"""(node, *inputs) -> a tensor, or a tuple of them; inputs left out are None."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An operator, and which of its inputs stay on the CPU: shapes, axes and other numbers it reads."""

    run: Operator
    host: frozenset[int]


OPERATORS: dict[tuple[str, str], Entry] = {}
"""By (domain, name); the families fill it when they are imported."""


def operator(*names: str, domain: str | Sequence[str] = "", host: Sequence[int] = ()) -> Callable[[Operator], Operator]:
    """Registers a function for the operators `names` of one domain or several."""

    def register(function: Operator) -> Operator:
        for space in (domain,) if isinstance(domain, str) else domain:
            for name in names:
                OPERATORS[space, name] = Entry(function, frozenset(host))
        return function

    return register


MICROSOFT = "com.microsoft"


def numbers(tensor: Tensor) -> list[int]:
    """The integers of a vector (or of a scalar, as one)."""
    return [int(number) for number in tensor.reshape(-1).tolist()]


def axes_of(node: Node, tensor: Tensor | None, name: str = "axes") -> list[int] | None:
    """Axes given by an input, or by an attribute as earlier opsets have it; None where neither is there."""
    if tensor is not None:
        return numbers(tensor)
    axes = node.get(name)
    return list(axes) if axes is not None else None

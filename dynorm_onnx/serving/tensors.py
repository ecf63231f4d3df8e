"""The inputs and outputs of a model as Triton names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from dynorm_onnx.errors import ModelError, UsageError

TRITON_TYPES: dict[ir.DataType, str] = {
    ir.DataType.BOOL: "TYPE_BOOL",
    ir.DataType.UINT8: "TYPE_UINT8",
    ir.DataType.UINT16: "TYPE_UINT16",
    ir.DataType.UINT32: "TYPE_UINT32",
    ir.DataType.UINT64: "TYPE_UINT64",
    ir.DataType.INT8: "TYPE_INT8",
    ir.DataType.INT16: "TYPE_INT16",
    ir.DataType.INT32: "TYPE_INT32",
    ir.DataType.INT64: "TYPE_INT64",
    ir.DataType.FLOAT16: "TYPE_FP16",
    ir.DataType.BFLOAT16: "TYPE_BF16",
    ir.DataType.FLOAT: "TYPE_FP32",
    ir.DataType.DOUBLE: "TYPE_FP64",
    ir.DataType.STRING: "TYPE_STRING",
}
"""ONNX element types and the names that model_config.proto has for them; all others cannot be served."""

DYNAMIC = -1


@dataclasses.dataclass(frozen=True)
class ServedTensor:
    """An input or output: what config.pbtxt says of it."""

    name: str
    data_type: str  # of TRITON_TYPES
    shape: tuple[int, ...]  # all axes, the batch included; DYNAMIC where free
    first: int | str | None  # the first axis: its size, the name of its size, None without a name or an axis

    def dims(self, batched: bool) -> tuple[int, ...]:
        """The axes that config.pbtxt lists: without the batch if Triton adds that one itself."""
        return self.shape[1:] if batched else self.shape


@dataclasses.dataclass(frozen=True)
class ServedSignature:
    """What a model takes and gives."""

    inputs: tuple[ServedTensor, ...]
    outputs: tuple[ServedTensor, ...]

    @property
    def shares_batch(self) -> bool:
        """Whether the first axis of every tensor is one and the same free size, by its name."""
        names = {tensor.first for tensor in (*self.inputs, *self.outputs)}
        return len(names) == 1 and isinstance(next(iter(names)), str)

    def check_batch(self, size: int) -> None:
        """Raises UsageError, naming the tensor, where a batch of any size cannot go through the first axes."""
        for tensor in (*self.inputs, *self.outputs):
            if not tensor.shape or tensor.shape[0] != DYNAMIC:
                axis = f"is fixed at {tensor.shape[0]}" if tensor.shape else "is not there: it is a scalar"
                raise UsageError(f"--max-batch-size {size}: the first axis of {tensor.name!r} {axis}; use 0")


def served_signature(model: ir.Model) -> ServedSignature:
    """Read inputs and outputs of a model.

    Raises ModelError, naming the tensor and its type, for a model without inputs, for sequences, maps and element
    types that Triton does not have, and for tensors of unknown rank.
    """
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    if not inputs:
        raise ModelError(f"The model {model.graph.name!r} has no inputs: there is nothing that a client could send.")
    return ServedSignature(_all(inputs, "input"), _all(model.graph.outputs, "output"))


def _all(values: Sequence[ir.Value], kind: str) -> tuple[ServedTensor, ...]:
    return tuple(_tensor(value, kind) for value in values)


def _tensor(value: ir.Value, kind: str) -> ServedTensor:
    if not isinstance(value.type, ir.TensorType):
        raise ModelError(f"The {kind} {value.name!r} is no tensor ({value.type}): Triton serves tensors only.")
    data_type = TRITON_TYPES.get(value.type.dtype)
    if data_type is None:
        raise ModelError(f"The {kind} {value.name!r} has the type {value.type.dtype.name}, which Triton does not have.")
    if value.shape is None:
        raise ModelError(
            f"The {kind} {value.name!r} has no shape in the model, and Triton must know its rank: "
            "run onnx.shape_inference on the file."
        )
    sizes = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    # exporters that know no names write -1 or 0 for a free size
    shape = tuple(size if isinstance(size, int) and size > 0 else DYNAMIC for size in sizes)
    return ServedTensor(value.name or "", data_type, shape, sizes[0] if sizes else None)

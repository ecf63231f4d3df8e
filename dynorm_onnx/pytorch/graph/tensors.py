"""ONNX tensors to torch and back."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from dynorm_onnx.errors import ModelError
from dynorm_onnx.pytorch.graph.operators.base import TORCH_TYPES

_SMALL_INTEGERS = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2)


def is_held(tensor: ir.TensorProtocol) -> bool:
    """Whether to_torch takes a tensor of this type."""
    return tensor.dtype in TORCH_TYPES or tensor.dtype in _SMALL_INTEGERS


def to_torch(tensor: ir.TensorProtocol, float_type: torch.dtype | None = None) -> torch.Tensor:
    """A copy; floats as `float_type` if one is given, integers of less than a byte in a byte each.

    Raises ModelError for a type that torch has not.
    """
    if tensor.dtype in _SMALL_INTEGERS:
        return torch.from_numpy(tensor.numpy().astype(np.int8 if tensor.dtype.is_signed() else np.uint8))
    if not is_held(tensor):
        raise ModelError(f"the tensor {tensor.name!r} has elements of {tensor.dtype.name}, which PyTorch cannot hold")
    converted = array_to_torch(np.array(tensor.numpy()))
    return converted.to(float_type) if float_type is not None and converted.is_floating_point() else converted


def array_to_torch(array: np.ndarray) -> torch.Tensor:
    """A tensor of the array's type, bfloat16 included; shares the memory where it can."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16).reshape(array.shape)
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)


def to_array(tensor: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    """A copy in a numpy type, rounded once."""
    wide = tensor.detach().cpu()
    wide = wide.float() if wide.dtype in (torch.bfloat16, torch.float16) else wide
    return wide.numpy().astype(dtype)

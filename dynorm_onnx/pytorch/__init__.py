"""The PyTorch side: modules to train with, replacing norms in any model, and export to one node per function.

Needs torch: `pip install dynorm-onnx[torch]`.
"""

from __future__ import annotations

from dynorm_onnx.errors import UsageError

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise UsageError(
        "dynorm_onnx.pytorch needs PyTorch, which is not installed: `pip install dynorm-onnx[torch]`"
    ) from error

# Modules and functions of one name (`export`): importing a submodule first would leave it in the function's place.
from dynorm_onnx.pytorch.export import export
from dynorm_onnx.pytorch.foreign import as_dynorm
from dynorm_onnx.pytorch.nn import Derf, DyISRU, DyT
from dynorm_onnx.pytorch.replace import NormModule, NormReport, replace_norms

__all__ = ["Derf", "DyISRU", "DyT", "NormModule", "NormReport", "as_dynorm", "export", "replace_norms"]

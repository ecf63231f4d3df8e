"""Replace RMSNorm and LayerNorm in ONNX transformers by element-wise functions: DyISRU, DyT, Derf."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynorm_onnx import custom_ops, errors
    from dynorm_onnx.conversion.convert_model import convert_model
    from dynorm_onnx.graph.sites.find import find_sites
    from dynorm_onnx.runtime.session import session

__version__ = "0.1.0"
__all__ = ["__version__", "convert_model", "custom_ops", "errors", "find_sites", "session"]

_HOMES = {
    "convert_model": "dynorm_onnx.conversion.convert_model",
    "find_sites": "dynorm_onnx.graph.sites.find",
    "session": "dynorm_onnx.runtime.session",
}
_MODULES = ("custom_ops", "errors")


def __getattr__(name: str) -> Any:
    """Import on first use: a program that only opens a session need not load the converter."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

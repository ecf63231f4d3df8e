"""The one import of onnxruntime: late, quiet, and with a sentence that says how to get it."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from types import ModuleType

from dynorm_onnx.errors import UsageError

log = logging.getLogger(__name__)

_ERROR_SEVERITY = 3  # 0 verbose, 1 info, 2 warning, 3 error, 4 fatal


@functools.cache
def onnxruntime() -> ModuleType:
    """The onnxruntime module; raises UsageError where no package of ONNX Runtime is installed.

    Imported late because three packages (onnxruntime, onnxruntime-gpu, ...) provide the same module and
    exclude each other, so that none can be a plain dependency.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise UsageError(
            f"ONNX Runtime cannot be imported ({error}): "
            "install it with `pip install dynorm-onnx[cpu]`, or dynorm-onnx[gpu] for CUDA"
        ) from error
    ort.set_default_logger_severity(_ERROR_SEVERITY)
    return ort


@functools.cache
def preload_cuda() -> None:
    """Load CUDA and cuDNN from NVIDIA's Python packages, where the [gpu] extra puts them."""
    preload = getattr(onnxruntime(), "preload_dlls", None)
    if preload is None:
        return
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints, and stdout may be carrying JSON
        preload()
    if said.getvalue():
        log.warning("%s", said.getvalue().strip())

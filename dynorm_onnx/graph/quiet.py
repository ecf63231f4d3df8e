"""What onnx-ir would write to stderr, and users need not see."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def without_tracebacks() -> Iterator[None]:
    """Inside, shape inference that fails says nothing.

    onnx-ir warns with a traceback. Of a model that cannot be run the reason is told later, in a sentence; for another
    it does not matter.
    """
    theirs = logging.getLogger("onnx_ir.passes.common.shape_inference")
    level = theirs.level
    theirs.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        theirs.setLevel(level)

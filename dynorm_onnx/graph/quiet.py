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
    theirs.addFilter(_nothing)  # a level would make all loggers forget what they know of theirs, each time
    try:
        yield
    finally:
        theirs.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False

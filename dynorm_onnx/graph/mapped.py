"""Weights that lie in a file of their own, of which the memory holds what was read until it is let go of."""

from __future__ import annotations

import contextlib

import onnx_ir as ir


def let_go(*values: ir.Value | None) -> None:
    """Lets go of the pages of external weights that were read; they are read again when used.

    To be called when no array of them is left: pages that one still shows stay.
    """
    for value in values:
        if value is not None and isinstance(value.const_value, ir.ExternalTensor):
            with contextlib.suppress(BufferError):
                value.const_value.release()

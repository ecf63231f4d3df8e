"""A converted model as its file holds it."""

from __future__ import annotations

import onnx_ir as ir

from dynorm_onnx.graph.replace.inline import inlined
from dynorm_onnx.graph.replace.separate_attention import separate_attention
from dynorm_onnx.graph.replace.trim_bodies import trimmed


def as_written(converted: ir.Model, *, inline: bool, fused: bool) -> ir.Model:
    """A copy with the functions, as short as can be; or, to `inline`, without any.

    Where the model was `fused` for ONNX Runtime, attention is left as that runs it fastest.
    """
    if inline:
        return inlined(converted)
    written = trimmed(converted)
    if fused:
        separate_attention(written)
    return written

"""Sizes that a cache input leaves open although the operator that reads it settles them."""

from __future__ import annotations

import onnx_ir as ir

_LENGTH, _CHANNELS = 2, 3  # axes of a cache [batch, heads, past, channels]


def settled_sizes(cache: ir.Value) -> dict[int, int]:
    """Sizes by axis of a float cache [batch, heads, past, channels] that GroupQueryAttention reads.

    onnxruntime-genai (0.18) leaves the channels of a head open, since a quantised cache has others. A cache
    of a sliding window has room for the window from the start; the lengths say how much of it is used.
    Empty where no such operator reads the cache.
    """
    nodes = [use.node for use in cache.uses() if use.node.op_type == "GroupQueryAttention"]
    if not nodes:
        return {}
    sizes = {_CHANNELS: _head_size(nodes[0])}
    if nodes[0].attributes.get_int("sliding_window_cache", 0):
        sizes[_LENGTH] = nodes[0].attributes.get_int("local_window_size", 0)
    return {axis: size for axis, size in sizes.items() if size}


def _head_size(attention: ir.Node) -> int:
    """Channels of a head by the width of the query, which holds keys and values too where they are no inputs."""
    query, key = attention.inputs[:2]
    heads = attention.attributes.get_int("num_heads", 0)
    if key is None:
        heads += 2 * attention.attributes.get_int("kv_num_heads", 0)
    width = query.shape[-1] if query is not None and query.shape else None
    return width // heads if isinstance(width, int) and heads and width % heads == 0 else 0

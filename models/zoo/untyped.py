"""A file as some optimisers and tools leave it: without a word on the types and shapes of what nodes give out."""

from __future__ import annotations

from pathlib import Path

import onnx


def without_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without value_info, in bodies too; inputs and outputs keep their types."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _strip(copy.graph)
    return copy


def untyped_file(path: Path) -> Path:
    """Writes without_types() of a file beside it; its external weights stay where they are."""
    target = path.with_suffix(".untyped.onnx")
    target.write_bytes(without_types(onnx.load(path, load_external_data=False)).SerializeToString())
    return target


def _strip(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _strip(body)

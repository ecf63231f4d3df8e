"""torch.onnx's newer exporter, which reads a program captured by torch.export."""

from __future__ import annotations

import functools
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from models.zoo.subject import Subject

# The newest that torch.onnx reaches in torch 2.13: above, it leaves operators in their older versions.
NEWEST = 25


def export(subject: Subject, folder: Path, *, opset: int) -> list[Path]:
    """Writes model.onnx at an opset; the capture is kept for the next opset of the same subject."""
    program = torch.onnx.export(
        _captured(subject),
        input_names=list(subject.inputs),
        output_names=[subject.output],
        dynamic_shapes=(_axes(subject),),  # for the names alone: what is free was settled by the capture
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    # stack traces and paths of the exporting machine are of no use in the file
    ClearMetadataAndDocStringPass()(program.model)
    path = folder / "model.onnx"
    ir.save(program.model, path)
    return [path]


@functools.lru_cache(maxsize=1)
def _captured(subject: Subject) -> torch.export.ExportedProgram:
    axes = _axes(subject)
    longest = getattr(subject.model.config, "max_position_embeddings", None)
    dims = {
        # a table of positions bounds the length, and the capture wants to be told
        name: torch.export.Dim(name, max=longest) if name == "sequence" else torch.export.Dim(name)
        for names in axes
        for name in names.values()
    }
    shapes = tuple({axis: dims[name] for axis, name in names.items()} for names in axes)
    return torch.export.export(subject.module, subject.example, dynamic_shapes=(shapes,), strict=False)


def _axes(subject: Subject) -> tuple[dict[int, str], ...]:
    """The free axes of each input; an axis of one name is one size everywhere."""
    return tuple(subject.free[name] for name in subject.inputs)

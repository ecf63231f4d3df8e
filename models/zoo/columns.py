"""The columns of the table: an exporter with its settings, and what is run on its file afterwards."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from models.zoo.exporters import Export, dynamo, genai, optimizers, torchscript
from models.zoo.subject import Subject

Optimise = Callable[[Subject, Path, Path], None]


@dataclasses.dataclass(frozen=True)
class Column:
    """One way to an ONNX file."""

    name: str  # on the command line
    title: str
    export: Export
    optimise: Optimise | None = None
    of: str | None = None  # the column whose files are optimised

    @property
    def source(self) -> str:
        """The column that exports: itself, or the one whose files it optimises."""
        return self.of or self.name


def _optimised(title: str, step: str, optimise: Optimise, of: Column) -> Column:
    return Column(f"{of.name}+{step}", title, of.export, optimise, of.name)


_DYNAMO = {
    opset: Column(f"dynamo-{opset}", f"dynamo, opset {opset}", functools.partial(dynamo.export, opset=opset))
    for opset in (18, 20, 23, dynamo.NEWEST)
}
_TORCHSCRIPT = Column("torchscript-17", "TorchScript, opset 17", functools.partial(torchscript.export, opset=17))
_GENAI = [
    Column(f"genai-{precision}", f"GenAI builder, {precision}", functools.partial(genai.export, precision=precision))
    for precision in ("fp32", "int4")
]
COLUMNS = {
    column.name: column
    for column in (
        *_DYNAMO.values(),
        _TORCHSCRIPT,
        _optimised("dynamo 20, ORT's optimizer", "optimizer", optimizers.onnxruntime_transformers, _DYNAMO[20]),
        _optimised("TorchScript, ORT's optimizer", "optimizer", optimizers.onnxruntime_transformers, _TORCHSCRIPT),
        _optimised("dynamo 20, optimize_for_ort", "optimize_for_ort", optimizers.onnxscript_ort, _DYNAMO[20]),
        *_GENAI,
    )
}

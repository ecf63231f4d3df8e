"""What is converted against the original, both as their files are run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dynorm_onnx.calibration.data import CalibrationData, part_like, signature
from dynorm_onnx.graph.values.output_kind import output_kinds
from dynorm_onnx.runtime.arrays import Feeds
from dynorm_onnx.runtime.pieces import Recorded, open_for_batches
from dynorm_onnx.runtime.session import Provider
from dynorm_onnx.runtime.validate import Validation, validate

Advance = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Validator:
    """Compares outputs with those of the `original` file on `data`; `as_written` gives a model as its file holds it."""

    original: Path
    data: CalibrationData
    provider: Provider
    as_written: Callable[[ir.Model], ir.Model]

    def compare(self, converted: ir.Model) -> Comparison:
        """Opens both; a session of either may take longer to make than its runs take."""
        models = (self.original, self.as_written(converted))
        before, after = (open_for_batches(model, provider=self.provider) for model in models)
        return Comparison(before, after, self.data, converted)

    def on_some(self, batches: int) -> Callable[[ir.Model], Validation]:
        """A quick comparison for many models in turn, on a few held-out batches: the original runs once."""
        original = Recorded(open_for_batches(self.original, provider=self.provider))
        some = self.data.validation[:batches]

        def compared(converted: ir.Model) -> Validation:
            opened = open_for_batches(converted, provider=self.provider)
            return validate(original, opened, some, vocabulary=self.data.vocabulary)

        return compared


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What opens the original (`before`) and the `converted` model as it is written (`after`)."""

    before: Any
    after: Any
    data: CalibrationData
    converted: ir.Model

    def held_out(self, progress: Advance) -> Validation:
        """On the samples that nothing was fitted to."""
        return self._on(self.data.validation, progress)

    def on_calibration(self, progress: Advance) -> Validation:
        """On samples that were fitted to, at most as many as were held out: where the two part, the parameters suit
        what they were fitted on and little else."""
        part = part_like(self.data.calibration, self.data.validation, signature(self.converted))
        return self._on(part, progress)

    def _on(self, batches: Sequence[Feeds], progress: Advance) -> Validation:
        kinds = output_kinds(self.converted.graph)
        return validate(
            self.before, self.after, batches, vocabulary=self.data.vocabulary, kinds=kinds, progress=progress
        )

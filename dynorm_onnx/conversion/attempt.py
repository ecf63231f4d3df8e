"""One attempt at a conversion: some norms of a lowered model calibrated and rewritten."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from dynorm_onnx.calibration.checkpoint import Checkpoint, digest_of
from dynorm_onnx.calibration.layers.reconstruct import reconstruct
from dynorm_onnx.calibration.norms.calibrate import Calibrated, calibrate_norms
from dynorm_onnx.calibration.norms.fit import Fit
from dynorm_onnx.calibration.norms.fit_rows import Leeway
from dynorm_onnx.calibration.norms.solved import Known
from dynorm_onnx.conversion.validator import Validator
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.replace.rewrite import drop_unused_functions, replace, set_initializers
from dynorm_onnx.progress import StepClock
from dynorm_onnx.runtime.arrays import Feeds
from dynorm_onnx.runtime.validate import Validation

METHODS: dict[str, Callable[..., Calibrated]] = {"reconstruct": reconstruct, "fit": calibrate_norms}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an attempt gave: the norms that it replaced, and the model."""

    norms: tuple[LoweredNorm, ...]
    calibrated: Calibrated | None  # None for an exact rewrite
    converted: ir.Model
    validation: Validation | None = None  # None before it is validated, or where nobody asked for that
    kept: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by site, what each costs of a bound
    distillation: Mapping[str, Any] | None = None  # the JSON object of the run

    @property
    def kept_for_the_bound(self) -> dict[str, str]:
        """The reason by site."""
        return {name: f"kept for the bound: its replacement costs {cost:.2g} of it" for name, cost in self.kept.items()}


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How norms are calibrated: by a method, on batches, within what a look at the original and a checkpoint tell."""

    to: str
    method: str  # of METHODS
    batches: Sequence[Feeds]
    leeway: Mapping[str, Leeway]
    in_bodies: Mapping[str, Fit]
    checkpoint: Checkpoint

    def __call__(
        self, lowered: ir.Model, norms: Sequence[LoweredNorm], progress: Callable[[int, int], None]
    ) -> Calibrated:
        """Parameters for these norms; those in bodies are fitted already."""
        part = f"{self.method} of {sorted(norm.site_name for norm in norms)} on {digest_of(self.batches)}"
        known = Known(self.checkpoint, part)
        function = REGISTRY[self.to]
        return METHODS[self.method](
            lowered, norms, function, self.batches, progress, self.leeway, self.in_bodies, known
        )


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Converts the lowered model, which stays as it is, with all of its `norms` replaced or some.

    Without a `calibration` the rewrite is exact: the lowered model itself. Without a `validator` nothing is validated.
    """

    lowered: ir.Model
    norms: tuple[LoweredNorm, ...]
    calibration: Calibration | None
    validator: Validator | None
    clock: StepClock

    def convert(self, norms: Sequence[LoweredNorm]) -> Outcome:
        """The model with these norms replaced, calibrated for that."""
        calibrated = None
        if self.calibration is not None:
            with self.clock.step("calibrate") as advance:
                calibrated = self.calibration(self.lowered, norms, advance)
        with self.clock.step("rewrite"):
            return Outcome(tuple(norms), calibrated, self.rewritten(norms, calibrated))

    def rewritten(self, norms: Sequence[LoweredNorm], calibrated: Calibrated | None) -> ir.Model:
        """A copy of the lowered model with these norms replaced by what was calibrated."""
        converted = model_io.clone(self.lowered)
        if self.calibration is not None and calibrated is not None:
            for norm in norms:
                replace(converted, norm, self.calibration.to, calibrated.fits[norm.site_name].parameters)
            set_initializers(converted, calibrated.initializers)
            drop_unused_functions(converted)
        return converted

    def judged(self, outcome: Outcome) -> Outcome:
        """The outcome validated on held-out samples, if it is not."""
        if self.validator is None or outcome.validation is not None:
            return outcome
        with self.clock.step("validate") as advance:
            validation = self.validator.compare(outcome.converted).held_out(advance)
        return dataclasses.replace(outcome, validation=validation)

    def judged_both_ways(self, outcome: Outcome) -> Outcome:
        """The outcome validated on held-out samples and, where anything was fitted, on some that it was fitted to."""
        if self.validator is None or outcome.calibrated is None:
            return self.judged(outcome)
        with self.clock.step("validate") as advance:
            comparison = self.validator.compare(outcome.converted)
            validation = outcome.validation or comparison.held_out(advance)
        with self.clock.step("validate") as advance:
            there = comparison.on_calibration(advance)
        return dataclasses.replace(outcome, validation=dataclasses.replace(validation, on_calibration=there))


Strategy = Callable[[Attempt], Outcome]
"""Which norms are replaced, and what is done around that."""


def convert_all(attempt: Attempt) -> Outcome:
    """All norms replaced."""
    return attempt.convert(attempt.norms)

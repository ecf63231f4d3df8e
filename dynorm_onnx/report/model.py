"""Report: everything that one conversion has to tell, and its JSON form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynorm_onnx.calibration.rotation.outcome import NO_ROTATIONS, Rotations
from dynorm_onnx.functions import NormParameters
from dynorm_onnx.graph.fold import NO_FOLDS, Folds
from dynorm_onnx.graph.norm_site import NearMiss
from dynorm_onnx.runtime.timing import Timing
from dynorm_onnx.runtime.validate import Validation

Status = Literal["converted", "kept", "refused", "found"]


@dataclasses.dataclass(frozen=True)
class SiteReport:
    """One norm: what it is and what became of it ("found" in a dry run)."""

    name: str
    kind: str
    form: str
    channels: int | None
    dtype: str | None
    status: Status
    reason: str | None = None
    error: float | None = None  # of the fit on the calibration data, relative
    held_out_error: float | None = None  # the same on calibration samples that were not solved with
    parameters: NormParameters | None = None
    length_errors: tuple[float, ...] = ()  # of S without and with each coupled channel, see norms/coupling.py

    @property
    def coupled(self) -> int:
        """How many channels stay in the norm's sum."""
        coupling = self.parameters.coupling if self.parameters is not None else None
        return len(coupling.channels) if coupling is not None else 0

    def as_dict(self) -> dict[str, Any]:
        """An entry of the JSON list "sites"; of each parameter its range over the channels."""
        apart = ("parameters", "length_errors")
        shown = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in apart}
        if self.parameters is None:
            return shown | {"coupled": None, "parameters": None}
        arrays = {**self.parameters.scalars, "weight": self.parameters.weight, "bias": self.parameters.bias}
        spreads = {name: _spread(array) for name, array in arrays.items()}
        return shown | {"coupled": self._coupled(), "parameters": spreads}

    def _coupled(self) -> dict[str, Any] | None:
        if self.parameters is None or self.parameters.coupling is None:
            return None
        coupling = self.parameters.coupling
        return {
            "channels": [int(channel) for channel in coupling.channels],
            "strengths": [float(strength) for strength in coupling.strengths],
            "length_errors": [float(error) for error in self.length_errors],
        }


@dataclasses.dataclass(frozen=True)
class CalibrationSummary:
    """What the parameters were fitted on."""

    source: str
    samples: int
    tokens: int
    seconds: float
    resumed: int  # norms, layers and searches that a run that was cut had solved


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a person must hear first; reasons and advice are empty for a usable model."""

    usable: bool
    reasons: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The verdict on a model that is not usable."""
        return f"this model is not usable: {'; '.join(self.reasons)}"

    def as_dict(self) -> dict[str, Any]:
        """The JSON object "verdict"."""
        return {"usable": self.usable, "reasons": list(self.reasons), "advice": list(self.advice)}


@dataclasses.dataclass(frozen=True)
class Report:
    """One conversion. `output` is None where nothing was written."""

    model: Path
    output: Path | None
    to: str
    method: str | None  # None where nothing was fitted (rmsnorm, a dry run)
    optimize: str  # "ort" where the original was fused for ONNX Runtime first, else "none"
    version: str
    sites: tuple[SiteReport, ...]
    near_misses: tuple[NearMiss, ...]
    calibration: CalibrationSummary | None = None
    distillation: Mapping[str, Any] | None = None  # the JSON object of the training, None without
    validation: Validation | None = None
    verdict: Verdict | None = None  # None where it was not validated
    alarms: tuple[str, ...] = ()  # warnings that come first
    timing: tuple[Timing, ...] = ()
    changed_initializers: tuple[str, ...] = ()
    folds: Folds = NO_FOLDS
    rotations: Rotations = NO_ROTATIONS
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # by step
    peak_memory_mib: float | None = None
    inline: bool = False  # whether the file was written in standard operators, without functions

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of docs/report.md; only plain Python types, and null for what is no finite number."""
        shown = {
            "model": str(self.model),
            "output": str(self.output) if self.output else None,
            "to": self.to,
            "method": self.method,
            "inline": self.inline,
            "optimize": self.optimize,
            "version": self.version,
            "sites": [site.as_dict() for site in self.sites],
            "near_misses": [{"name": miss.name, "reason": miss.reason} for miss in self.near_misses],
            "calibration": dataclasses.asdict(self.calibration) if self.calibration else None,
            "distillation": dict(self.distillation) if self.distillation else None,
            "verdict": self.verdict.as_dict() if self.verdict else None,
            "alarms": list(self.alarms),
            "validation": self.validation.as_dict() if self.validation else None,
            "timing": [timing.as_dict() for timing in self.timing],
            "changed_initializers": list(self.changed_initializers),
            "folds": {
                "done": [dataclasses.asdict(fold) for fold in self.folds.done],
                "left": [dataclasses.asdict(fold) for fold in self.folds.left],
                "relative_error": self.folds.error,
            },
            "rotations": {
                "lengths": [dataclasses.asdict(turning) for turning in self.rotations.lengths],
                "done": [dataclasses.asdict(turning) for turning in self.rotations.done],
                "left": [dataclasses.asdict(stream) for stream in self.rotations.left],
                "relative_error": self.rotations.relative_error,
            },
            "warnings": list(self.warnings),
            "seconds": {step: round(value, 3) for step, value in self.seconds.items()},
            "peak_memory_mib": self.peak_memory_mib,
        }
        return {name: _finite(value) for name, value in shown.items()}

    def with_status(self, status: Status) -> tuple[SiteReport, ...]:
        """The sites of one status."""
        return tuple(site for site in self.sites if site.status == status)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _spread(array: np.ndarray) -> dict[str, float]:
    return {
        "min": float(np.min(array)),
        "median": float(np.median(array)),
        "max": float(np.max(array)),
    }

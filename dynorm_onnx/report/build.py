"""Put a Report together from what the steps of a conversion gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynorm_onnx import __version__
from dynorm_onnx.calibration.data import CalibrationData
from dynorm_onnx.calibration.norms.calibrate import Calibrated
from dynorm_onnx.calibration.rotation.outcome import NO_ROTATIONS, Rotations
from dynorm_onnx.config import ConvertConfig
from dynorm_onnx.graph.fold import NO_FOLDS, Folds
from dynorm_onnx.graph.norm_site import NormSite, SitesFound
from dynorm_onnx.progress import StepClock, peak_memory_mib
from dynorm_onnx.report.model import CalibrationSummary, Report, SiteReport
from dynorm_onnx.report.verdict import badly_fitted, failed_training, judge
from dynorm_onnx.runtime.timing import Timing
from dynorm_onnx.runtime.validate import Validation


def build_report(
    config: ConvertConfig,
    found: SitesFound,
    kept: Mapping[str, str],
    clock: StepClock,
    data: CalibrationData | None = None,
    calibrated: Calibrated | None = None,
    validation: Validation | None = None,
    timing: tuple[Timing, ...] = (),
    distillation: Mapping[str, Any] | None = None,
    folds: Folds = NO_FOLDS,
    rotations: Rotations = NO_ROTATIONS,
    notes: tuple[str, ...] = (),
    resumed: int = 0,
) -> Report:
    """The report of one conversion; without data and outcome, that of a dry run.

    `notes` go before other warnings: of the file's, what the written one has not; what could not be checked. `resumed`
    is how many results of a run that was cut were used.
    """
    sites = tuple(_site(site, config, kept, calibrated) for site in found.sites) + _refused(found)
    return Report(
        model=config.model,
        output=None if config.dry_run else config.output_path,
        to=config.to,
        method=config.method if calibrated else None,
        inline=config.inline,
        optimize=config.optimize,
        version=__version__,
        sites=sites,
        near_misses=found.near_misses,
        calibration=_calibration(data, clock, resumed) if calibrated else None,
        distillation=distillation,
        validation=validation,
        verdict=judge(config, sites, validation),
        timing=timing,
        changed_initializers=_changed(calibrated, folds, rotations),
        folds=folds,
        rotations=rotations,
        alarms=(*badly_fitted(sites), *failed_training(distillation)),
        warnings=(*notes, *_warnings(data if calibrated else None, calibrated, validation)),
        seconds=dict(clock.seconds),
        peak_memory_mib=round(peak_memory_mib(), 1),
    )


def _changed(calibrated: Calibrated | None, folds: Folds, rotations: Rotations) -> tuple[str, ...]:
    """The initializers that are not what they were, each once."""
    fitted = calibrated.initializers if calibrated else ()
    return tuple(dict.fromkeys((*fitted, *folds.changed_initializers, *rotations.changed_initializers)))


def _site(site: NormSite, config: ConvertConfig, kept: Mapping[str, str], calibrated: Calibrated | None) -> SiteReport:
    fitted = calibrated.fits.get(site.name) if calibrated else None
    status = "kept" if site.name in kept else "found" if config.dry_run else "converted"
    return SiteReport(
        site.name,
        site.kind,
        site.form,
        site.channels,
        site.dtype.name,
        status,  # type: ignore[arg-type]  # mypy widens the conditional to str
        kept.get(site.name),
        fitted.relative_error if fitted else None,
        fitted.held_out_error if fitted else None,
        fitted.parameters if fitted else None,
        fitted.length_errors if fitted else (),
    )


def _refused(found: SitesFound) -> tuple[SiteReport, ...]:
    return tuple(
        SiteReport(
            refusal.name,
            refusal.kind,
            refusal.form,
            refusal.channels,
            refusal.dtype.name if refusal.dtype is not None else None,
            "refused",
            refusal.reason,
        )
        for refusal in found.refused
    )


def _calibration(data: CalibrationData | None, clock: StepClock, resumed: int) -> CalibrationSummary | None:
    if data is None:
        return None
    return CalibrationSummary(data.source, data.samples, data.tokens, round(clock.seconds["calibrate"], 3), resumed)


def _warnings(
    data: CalibrationData | None, calibrated: Calibrated | None, validation: Validation | None
) -> tuple[str, ...]:
    return (
        *(data.warnings if data else ()),
        *(calibrated.notes if calibrated else ()),
        *(validation.warnings if validation else ()),
    )

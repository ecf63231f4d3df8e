"""What a conversion did and how good it is: the Report, for people and for programs."""

from __future__ import annotations

from dynorm_onnx.report.console import print_report
from dynorm_onnx.report.model import CalibrationSummary, Report, SiteReport, Verdict

__all__ = ["CalibrationSummary", "Report", "SiteReport", "Verdict", "print_report"]

"""Calibration data: what a model takes, and batches of it from files, Python or the model itself."""

from __future__ import annotations

from dynorm_onnx.calibration.data.load import CalibrationData, load_calibration
from dynorm_onnx.calibration.data.part import part_like
from dynorm_onnx.calibration.data.signature import InputSpec, ModelSignature, signature

__all__ = ["CalibrationData", "InputSpec", "ModelSignature", "load_calibration", "part_like", "signature"]

"""Which rotation of a stream makes functions of single channels fit its norms, and what it brings."""

from __future__ import annotations

from dynorm_onnx.calibration.rotation.choose import Chosen, choose_rotation
from dynorm_onnx.calibration.rotation.tokens import tokens_of_streams

__all__ = ["Chosen", "choose_rotation", "tokens_of_streams"]
